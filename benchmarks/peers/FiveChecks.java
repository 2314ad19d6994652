import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.module.blackbird.BlackbirdModule;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;

/**
 * The five stateless checks of the benchmark's policy as a Kafka Streams job, exactly once, tuned for two cores.
 *
 * <p>Usage: FiveChecks BOOTSTRAP APPLICATION SOURCE APPROVED BLOCKED FLOORS STATE_DIR COMMIT_MS
 */
public final class FiveChecks {
    @JsonIgnoreProperties(ignoreUnknown = true)
    record Prediction(String entity_id, Double value, String currency, String segment, Features features) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Features(Double cost) {}

    private static final ObjectReader READER = JsonMapper.builder()
            .addModule(new BlackbirdModule())
            .enable(StreamReadFeature.USE_FAST_DOUBLE_PARSER)
            .build()
            .readerFor(Prediction.class);
    private static final Set<String> CURRENCIES = Set.of("USD", "EUR", "GBP");
    private static final Map<String, Double> FLOORS = new HashMap<>();

    private static boolean isSane(byte[] event) {
        Prediction p;
        try {
            p = READER.readValue(event);
        } catch (IOException e) {
            return false;
        }
        if (p.value == null || p.entity_id == null || p.features == null || p.features.cost == null) {
            return false;
        }
        double value = p.value;
        double cost = p.features.cost;
        return value >= ("cameras".equals(p.segment) ? 50.0 : 10.0)
                && value <= 25000.0
                && cost >= 1.0
                && cost <= 20000.0
                && value >= FLOORS.getOrDefault(p.entity_id, Double.NEGATIVE_INFINITY)
                && value >= 1.02 * cost
                && p.currency != null
                && CURRENCIES.contains(p.currency);
    }

    public static void main(String[] arguments) throws IOException {
        String source = arguments[2];
        String approved = arguments[3];
        String blocked = arguments[4];
        int commitMs = Integer.parseInt(arguments[7]);
        try (Stream<String> rows = Files.lines(Path.of(arguments[5]))) {
            rows.skip(1).map(row -> row.split(",")).forEach(cells -> FLOORS.put(cells[0], Double.valueOf(cells[1])));
        }

        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[1]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[6]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, commitMs);
        settings.put(StreamsConfig.POLL_MS_CONFIG, Math.min(commitMs, 100));
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        settings.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 2 * 1024 * 1024);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 512 * 1024);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128 * 1024 * 1024);

        StreamsBuilder builder = new StreamsBuilder();
        builder.<byte[], byte[]>stream(source).to((key, value, context) -> isSane(value) ? approved : blocked);
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_APPLICATION;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
