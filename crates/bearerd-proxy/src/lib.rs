//! Door 1, callers: match a route, ask policy, take the access token, stream both bodies
