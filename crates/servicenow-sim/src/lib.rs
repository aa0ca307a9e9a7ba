//! A ServiceNow with faults: authorization server, Table API, scripted failures
