//! One function per act: create connection, finish consent, issue key; checks, stores, publishes
