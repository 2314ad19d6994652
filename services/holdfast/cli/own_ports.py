"""Requests to the ports of this machine."""

import urllib.request

# A proxy that the environment names does not reach this machine's own ports.
open_here = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
