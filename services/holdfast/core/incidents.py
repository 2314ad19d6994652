"""An incident in words: what was done when it was opened, how the route stands now, and what consumers have.

The console, the command line and the alerts use it. An open incident is published again when the route moves, so
these sentences stay true until it is resolved.
"""

from holdfast_schemas import Incident, IncidentAction, IncidentStatus, RouteState


def headline(incident: Incident) -> str:
    """One line: `pricing v42 was bad and is fenced, v41 serves instead`."""
    bad, serves = f"{incident.model} {incident.bad_version}", serving(incident)
    if incident.more_versions:
        bad += f" (and {incident.more_versions} more)"
    if incident.action is IncidentAction.HELD:
        if is_held(incident):
            return f"{incident.model} is held: {incident.bad_version} was bad, and no version may serve"
        return f"{incident.model} was held because {incident.bad_version} was bad, {serves or 'no version'} serves now"
    if is_held(incident):
        then = "and the model is held by now: no version may serve"
    elif serves is None:
        then = "no version serves"
    elif serves != incident.routed_to:
        then = f"{serves} serves now"
    elif incident.action is IncidentAction.SWITCHED:
        then = f"{serves} serves instead"
    else:
        then = "the route did not change"
    fenced = "was fenced" if incident.status is IncidentStatus.RESOLVED else "is fenced"
    return f"{bad} was bad and {fenced}, {then}"


def what_was_done(incident: Incident) -> str:
    """At the time when it was opened, as a sentence without its end."""
    match incident.action:
        case IncidentAction.SWITCHED:
            return f"The route moved from {incident.bad_version} to {incident.routed_to or 'another version'}"
        case IncidentAction.FENCED:
            if more := incident.more_versions:
                return f"{incident.bad_version} and {more} more were fenced; none was active, so the route stayed"
            return f"{incident.bad_version} was fenced; it was not active, so the route stayed"
        case IncidentAction.HELD:
            return f"{incident.bad_version} was bad, and the route was held: no version served from then on"


def how_it_stands(incident: Incident) -> str:
    """How the route stands now, as a sentence without its end; empty where what was done says it."""
    serves = serving(incident)
    if is_held(incident):
        return f"Every output of {incident.model} is blocked until a version is promoted or resumed"
    if serves is None:
        return "No version serves now"
    return "" if incident.action is IncidentAction.SWITCHED and serves == incident.routed_to else f"{serves} serves now"


def what_consumers_have(incident: Incident) -> str:
    """What was approved of the bad version, as a sentence without its end; empty where nothing is known of it.

    Blocked outputs reached nobody. The count is of the outputs that the incident has seen: the window of the trip,
    and what came later.
    """
    approved = incident.seen - incident.blocked
    if approved <= 0:
        return ""
    return f"Approved before: at least {approved:,}. Consumers may have acted on these"


def is_held(incident: Incident) -> bool:
    """Whether no version may serve, as the incident says; one from before routes were followed says it by its kind."""
    if incident.route_state is None:
        return incident.action is IncidentAction.HELD and incident.status is not IncidentStatus.RESOLVED
    return incident.route_state is RouteState.HELD


def serving(incident: Incident) -> str | None:
    """The version that serves, as the incident says."""
    return incident.serves if incident.route_state is not None else incident.routed_to
