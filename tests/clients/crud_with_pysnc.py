"""Uses ServiceNow's own Python client as its users do, and prints what it saw as one JSON object.

ORIGIN and KEY come from the environment; REQUESTS_CA_BUNDLE names the private authority, as requests documents.
"""

import json
import os

from pysnc import ServiceNowClient
from requests.auth import AuthBase


class CallerKey(AuthBase):
    def __call__(self, request):
        request.headers["Authorization"] = "Bearer " + os.environ["KEY"]
        return request


client = ServiceNowClient(os.environ["ORIGIN"], CallerKey())
seen = {}

# Query: one page is enough.
incident = client.GlideRecord("incident")
incident.add_query("active", "true")
incident.limit = 3
incident.fields = ["number", "active", "sys_id"]
incident.query()
seen["queried"] = [row.get_value("active") for row in incident]

# Paging: all rows, seven at a time.
incident = client.GlideRecord("incident", batch_size=7)
incident.fields = ["number", "sys_id"]
incident.query()
seen["total"] = incident.get_row_count()
seen["paged"] = sorted(row.get_value("number") for row in incident)

# Insert, read back.
incident = client.GlideRecord("incident")
incident.initialize()
incident.set_value("short_description", "made by pysnc, with ünïcode")
sys_id = incident.insert()
seen["sys_id"] = str(sys_id)
incident = client.GlideRecord("incident")
assert incident.get(sys_id), "what was inserted is found"
seen["inserted"] = incident.get_value("short_description")

# Update, read back.
incident.set_value("short_description", "changed by pysnc")
incident.update()
incident = client.GlideRecord("incident")
assert incident.get(sys_id)
seen["updated"] = incident.get_value("short_description")

# Delete: gone afterwards.
seen["deleted"] = incident.delete()
seen["found_after_delete"] = client.GlideRecord("incident").get(sys_id)

# What a policy does not open is told as pysnc's own exception.
try:
    problem = client.GlideRecord("problem")
    problem.query()
    seen["refused"] = "nothing"
except Exception as error:  # the type is what is looked at
    seen["refused"] = type(error).__name__

print(json.dumps(seen))
