"""The outside judge: h11, a strict HTTP/1.1 parser that others wrote, in the role of a server.

It forgives a few things that the written list does not (a bare LF, a folded line, both lengths); what it refuses,
bearerd must refuse too. One difference is the standard's own word: RFC 9112 §2.2 has a server ignore an empty line
before a request line, and h11 does not, so such lines are taken away first.
"""

import h11

# Beyond any head that the written list lets through: the limits are the list's to judge.
HEAD_BYTES_MAX = 1 << 20


def accepted(data):
    """The requests that h11 takes from a stream, in order: (method, target, body). Ends where h11 refuses or waits."""
    requests = []
    while True:
        while data.startswith(b"\r\n"):
            data = data[2:]
        if not data:
            return requests
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        connection.receive_data(data)
        head, body = None, []
        try:
            while True:
                event = connection.next_event()
                kind = type(event)
                if kind is h11.Request:
                    head = event
                elif kind is h11.Data:
                    body.append(bytes(event.data))
                elif kind is h11.EndOfMessage:
                    break
                else:
                    return requests
        except h11.RemoteProtocolError:
            return requests
        requests.append((head.method, head.target, b"".join(body)))
        data = connection.trailing_data[0]
