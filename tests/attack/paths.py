"""Hostile paths (P-10, P-11): every trick in every place of every opened family, and the paths that people try. The
origin gets none that is not of an opened family's grammar, byte for byte as it was sent.
"""

import time
from collections import Counter

import exchange
import h2
import program
ID = b"0123456789abcdef0123456789abcdef"

# What stands for a segment, or is put before, into or behind one.
TRICKS = [
    b".", b"..", b"...", b"....", b"%2e", b"%2e%2e", b"%2E%2e", b".%2e", b"%2e.", b"%252e%252e", b"%25252e", b"..%00", b"..%0d", b"..;", b"..;x=y", b".;", b";", b";x", b";x=y", b";jsessionid=1", b"%3b", b"%3bx=y",
    b"%2f", b"%2F", b"%252f", b"%25252f", b"%5c", b"%5C", b"%255c", b"\\", b"..\\", b"\\..\\", b"..%2f", b"..%5c", b"%2e%2e%2f", b"%2f%2e%2e", b"..%252f", b"..%c0%af", b"..%ef%bc%8f",
    b"%00", b"%0a", b"%0d", b"%0d%0a", b"%09", b"%20", b"%7f", b"%80", b"%ff", b"+", b"%", b"%2", b"%zz", b"%u002e", b"%u2215", b"%u2216", b"%%32%65", b"%c0%ae", b"%c0%ae%c0%ae", b"%e0%80%ae", b"%f0%80%80%ae", b"%c0%af", b"%e0%80%af", b"%c1%9c", b"%c1%1c", b"%ef%bc%8e", b"%ef%bc%8f", b"%e2%88%95", b"%e2%80%ae",
    "é".encode(), "．．".encode(), "／".encode(), "＼".encode(), "․".encode(), b"\xff", b"\xc0\xae",
    b"~", b"!", b"$", b"&", b"'", b"(", b")", b"*", b",", b"=", b":", b"@", b"|", b"^", b'"', b"<", b">", b"{", b"}", b"`", b"[", b"]", b"$(id)", b"${jndi:x}", b"{{7*7}}", b"'--", b"a.do", b".json", b".", b"%61", b"%41", b"_%61",
]
PLACES = ["instead", "before", "behind", "inside", "as a further segment", "as a segment of its own before", "then up"]

# Roots that a ServiceNow instance serves and bearerd does not.
ELSEWHERE = [
    b"/", b"//", b"/login.do", b"/stats.do", b"/oauth_token.do", b"/oauth_auth.do", b"/oauth_revoke_token.do", b"/oauth_introspect.do", b"/logout.do", b"/xmlstats.do", b"/threads.do", b"/replication.do", b"/cache.do", b"/sys.scripts.do", b"/sys_user.do", b"/sys_user_list.do", b"/incident.do", b"/incident.do?JSONv2", b"/incident_list.do?CSV", b"/nav_to.do", b"/navpage.do", b"/side_door.do", b"/login_with_sso.do", b"/saml_redirector.do", b"/xmlhttp.do", b"/angular.do", b"/amb", b"/amb/connect", b"/ws.do", b"/incident.do?SOAP", b"/incident.do?WSDL", b"/sys_attachment.do", b"/ecc_queue.do", b"/sp", b"/now/nav/ui", b"/welcome.do", b"/$pa_dashboard.do", b"/favicon.ico", b"/robots.txt", b"/.well-known/openid-configuration", b"/scripts/x.js", b"/styles/x.css",
    b"/api", b"/api/", b"/api/now", b"/api/now/", b"/api/now/table", b"/api/now/table/", b"/api/now/v1", b"/api/now/v1/table", b"/api/now/v3/table/incident", b"/api/now/v0/table/incident", b"/api/now/v10/table/incident", b"/api/now/V2/table/incident", b"/api/now/latest/table/incident", b"/api/NOW/table/incident", b"/API/now/table/incident", b"/api/now/TABLE/incident", b"/api/now/tables/incident", b"/api/now/table/incident/", b"/api/now/table/incident/" + ID + b"/", b"/api/now/table/incident/" + ID + b"/x", b"/api/now/table//incident", b"/api/now//table/incident", b"/api//now/table/incident", b"//api/now/table/incident", b"/api/now/table/incident//" + ID, b"/api/now/table/" + b"a" * 81, b"/api/now/table/incident/" + b"a" * 33,
    b"/api/now/batch", b"/api/now/v1/batch", b"/api/now/tinyurl", b"/api/now/graphql", b"/api/now/doc/file", b"/api/now/ui/user", b"/api/now/import/incident/insertMultiple", b"/api/now/email", b"/api/now/cmdb/instance/x", b"/api/now/attachment/x/file", b"/api/now/stats/incident", b"/api/now/pa/scorecards", b"/api/now/identifyreconcile", b"/api/now/reporting", b"/api/now/syncro/x", b"/api/now/processflow/x", b"/api/now/v1/account", b"/api/now/sp/page", b"/api/now/mobile/app", b"/api/sn_sc/servicecatalog/items", b"/api/sn_km_api/knowledge/articles", b"/api/x_custom/table/incident", b"/api/global/user_role_inheritance", b"/api/sn_chg_rest/change", b"/apinow/table/incident", b"/api/nowtable/incident", b"/api/now/table.do/incident", b"/api/now/table/incident.do",
    b"/c", b"/c/", b"/c/hr-prod", b"/c/hr-prod/", b"/c/hr-prod/login.do", b"/c/hr-prod/api/now", b"/c/hr-prod//api/now/table/incident", b"/c//api/now/table/incident", b"/c/../api/now/table/incident", b"/c/hr-prod/../api/now/table/incident", b"/c/hr-prod/c/hr-prod/api/now/table/incident", b"/C/hr-prod/api/now/table/incident", b"/c/%68r-prod/api/now/table/incident", b"/c/hr%2dprod/api/now/table/incident", b"/c/hr-prod;x/api/now/table/incident", b"/c/hr prod/api/now/table/incident", b"/x/hr-prod/api/now/table/incident", b"/c/" + b"a" * 64 + b"/api/now/table/incident",
    b"/v1/connections", b"/v1/keys", b"/readyz", b"/metrics", b"/openapi.json", b"/connect/x", b"/oauth/callback", b"/admin", b"/console",
]
# Good ones of each family, from which the others are made, and which pass.
PLAIN = {
    "table": [b"/api/now/table/incident", b"/api/now/v2/table/incident/" + ID, b"/c/hr-prod/api/now/v1/table/incident/" + ID],
    "stats": [b"/api/now/stats/incident", b"/c/hr-prod/api/now/v1/stats/incident"],
    "attachment": [b"/api/now/attachment", b"/api/now/v1/attachment/" + ID, b"/c/hr-prod/api/now/attachment/" + ID + b"/file", b"/api/now/attachment/file"],
    "import": [b"/api/now/import/u_staging", b"/c/hr-prod/api/now/v1/import/u_staging/" + ID],
    "sn_sc": [b"/api/sn_sc/servicecatalog/items", b"/c/hr-prod/api/sn_sc/v1/servicecatalog/items/" + ID],
    "sn_km_api": [b"/api/sn_km_api/knowledge/articles"],
    "now/email": [b"/api/now/email/" + ID],
}


def tricked(path):
    """Every trick in every place of a path; also a way up and out, however it is spelled."""
    segments = path[1:].split(b"/")
    for at in range(len(segments)):
        for trick in TRICKS:
            for place in PLACES:
                held = segments[at]
                changed = {
                    "instead": [trick],
                    "before": [trick + held],
                    "behind": [held + trick],
                    "inside": [held[: len(held) // 2] + trick + held[len(held) // 2 :]],
                    "as a further segment": [held, trick],
                    "as a segment of its own before": [trick, held],
                    "then up": [held, trick, trick, trick, b"login.do"],
                }[place]
                yield b"/" + b"/".join(segments[:at] + changed + segments[at + 1 :])


def sendable(path):
    """What does not even make a request line is `h1_shapes.py`'s."""
    return not set(path) & set(b" \r\n\x00")


async def main():
    given = program.arguments(__doc__, workers=(32, "paths at once"), every=(1, "send every so manieth tricked path"), http2=(0, "1: over HTTP/2"))
    begun = time.monotonic()
    judge = await program.start(given)
    if given.http2 and not await program.speaks_h2(given):
        judge.find("the proxy door does not speak HTTP/2 by prior knowledge", h2.PREFACE)
        return program.report(judge, begun)
    plain = [path for family in given.families for path in PLAIN[family]]
    tricks = list(dict.fromkeys(path for base in plain for path in tricked(base) if sendable(path)))[:: given.every]
    hostile = [path for path in dict.fromkeys(ELSEWHERE + tricks) if not judge.sent_paths(path.partition(b"?")[0])]
    kept = [path for path in tricks if judge.sent_paths(path)]  # a trick that gives another good path, such as `_`
    queue = iter([*hostile, *kept, *plain])
    outcomes = Counter()

    async def over_http2(_):
        connection = None
        for path in queue:
            if connection is None or connection.ended or connection.goaway is not None:
                connection = await h2.Connection.open(given.proxy_h2)
            fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"b.example"), (b":path", path), (b"authorization", b"Bearer " + given.key.encode())]
            good = judge.sent_paths(path.partition(b"?")[0])
            expected = h2.expect(judge, path, fields) if good else None
            block = h2.block(fields)
            await h2.exchange(judge, connection, path, expected, [(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, block)])
            outcomes["good" if good else "hostile"] += 1

    async def work(_):
        connection = None
        for path in queue:
            stream = b"GET %b HTTP/1.1\r\nHost: b.example\r\nAuthorization: Bearer %b\r\n\r\n" % (path, given.key.encode())
            connection = await exchange.exchange(judge, given.proxy, stream, [stream], connection)
            outcomes["hostile" if not judge.sent_paths(path.partition(b"?")[0]) else "good"] += 1
        if connection is not None:
            connection.close()

    await exchange.in_turn(given.workers, over_http2 if given.http2 else work)
    at_origin, good = judge.counts["at the origin"], outcomes["good"]
    if at_origin > good:
        judge.find("more requests at the origin than good paths", b"", f"{at_origin} of {good}")
    for path in plain:
        await must_pass(judge, given, path)
    program.report(judge, begun, families=given.families, hostile=len(hostile), good=good)


async def must_pass(judge, given, path):
    stream = b"GET %b?n=must HTTP/1.1\r\nHost: b.example\r\nAuthorization: Bearer %b\r\n\r\n" % (path, given.key.encode())
    before = judge.counts["accepted"]
    connection = await exchange.exchange(judge, given.proxy, stream, [stream])
    if connection is not None:
        connection.close()
    if judge.counts["accepted"] == before:
        judge.find("a good path did not pass", stream)


if __name__ == "__main__":
    program.run(main())
