//! The demo instance: the tables people know, and records that hang together, made by arithmetic so that they are the
//! same in every run.

use crate::secrets::sys_id_for;
use crate::seed::record;
use crate::settings::UserSettings;
use crate::tables::{Field, FieldKind, Record, TableSchema};

/// Schemas, parents first.
pub(crate) fn schemas() -> Vec<TableSchema> {
    let mut schemas = platform_schemas();
    schemas.extend(task_schemas());
    schemas.extend(catalog_schemas());
    schemas.extend(import_schemas());
    schemas
}

fn platform_schemas() -> Vec<TableSchema> {
    vec![
        table(
            "sys_db_object",
            "Table",
            "label",
            &[("name", text()), ("label", text()), ("super_class", to("sys_db_object"))],
        ),
        table(
            "sys_dictionary",
            "Dictionary Entry",
            "column_label",
            &[
                ("name", text()),
                ("element", text()),
                ("column_label", text()),
                ("internal_type", FieldKind::NameIn("sys_glide_object".to_owned())),
                ("reference", FieldKind::NameIn("sys_db_object".to_owned())),
                ("active", yes_no()),
                ("mandatory", yes_no()),
            ],
        ),
        table("sys_properties", "System Property", "name", &[("name", text()), ("value", text())]),
        table("cmn_department", "Department", "name", &[("name", text())]),
        table(
            "sys_user",
            "User",
            "name",
            &[
                ("user_name", text()),
                ("first_name", text()),
                ("last_name", text()),
                ("name", text()),
                ("email", text()),
                ("title", text()),
                ("active", yes_no()),
                ("locked_out", yes_no()),
                ("department", to("cmn_department")),
                ("manager", to("sys_user")),
            ],
        ),
        table("sys_user_role", "Role", "name", &[("name", text())]),
        table(
            "sys_user_has_role",
            "User Role",
            "role",
            &[
                ("user", to("sys_user")),
                ("role", to("sys_user_role")),
                ("state", text()),
                ("inherited", yes_no()),
            ],
        ),
        table(
            "sys_user_group",
            "Group",
            "name",
            &[("name", text()), ("description", text()), ("active", yes_no()), ("manager", to("sys_user"))],
        ),
        table(
            "sys_user_grmember",
            "Group Member",
            "user",
            &[("user", to("sys_user")), ("group", to("sys_user_group"))],
        ),
        table("cmdb_ci", "Configuration Item", "name", &[("name", text()), ("asset_tag", text())]),
        table(
            "kb_knowledge",
            "Knowledge",
            "short_description",
            &[
                ("number", text()),
                ("short_description", text()),
                ("text", text()),
                ("workflow_state", text()),
                ("author", to("sys_user")),
                ("active", yes_no()),
            ],
        )
        .numbered("KB"),
    ]
}

fn task_schemas() -> Vec<TableSchema> {
    let levels = || one_of(&[("1", "1 - High"), ("2", "2 - Medium"), ("3", "3 - Low")]);
    let task = table(
        "task",
        "Task",
        "number",
        &[
            ("number", text()),
            ("short_description", text()),
            ("description", text()),
            ("active", yes_no()),
            ("state", one_of(TASK_STATES)),
            ("impact", levels()),
            ("urgency", levels()),
            ("priority", one_of(PRIORITIES)),
            ("assigned_to", to("sys_user")),
            ("assignment_group", to("sys_user_group")),
            ("opened_by", to("sys_user")),
            ("opened_at", FieldKind::DateTime),
            ("closed_at", FieldKind::DateTime),
            ("cmdb_ci", to("cmdb_ci")),
            ("parent", to("task")),
            ("comments", text()),
            ("work_notes", text()),
        ],
    );
    vec![
        task,
        table("problem", "Problem", "number", &[("known_error", yes_no()), ("cause_notes", text())])
            .extending("task", "PRB"),
        table(
            "incident",
            "Incident",
            "number",
            &[
                ("caller_id", to("sys_user")),
                ("category", text()),
                ("subcategory", text()),
                ("contact_type", text()),
                ("state", one_of(INCIDENT_STATES)),
                ("problem_id", to("problem")),
                ("close_code", text()),
                ("close_notes", text()),
                ("resolved_at", FieldKind::DateTime),
                ("resolved_by", to("sys_user")),
                ("reopen_count", FieldKind::Integer),
            ],
        )
        .extending("task", "INC"),
        table(
            "change_request",
            "Change Request",
            "number",
            &[
                ("type", text()),
                ("risk", text()),
                ("start_date", FieldKind::DateTime),
                ("end_date", FieldKind::DateTime),
            ],
        )
        .extending("task", "CHG"),
        table("sc_request", "Request", "number", &[("requested_for", to("sys_user")), ("stage", text())])
            .extending("task", "REQ"),
        table(
            "sc_req_item",
            "Requested Item",
            "number",
            &[("request", to("sc_request")), ("quantity", FieldKind::Integer), ("stage", text())],
        )
        .extending("task", "RITM"),
    ]
}

fn catalog_schemas() -> Vec<TableSchema> {
    vec![
        table("sc_catalog", "Catalog", "title", &[("title", text()), ("active", yes_no())]),
        table(
            "sc_category",
            "Category",
            "title",
            &[
                ("title", text()),
                ("description", text()),
                ("active", yes_no()),
                ("sc_catalog", to("sc_catalog")),
            ],
        ),
        table(
            "sc_cat_item",
            "Catalog Item",
            "name",
            &[
                ("name", text()),
                ("short_description", text()),
                ("price", text()),
                ("active", yes_no()),
                ("category", to("sc_category")),
            ],
        ),
        table("sc_cart", "Shopping Cart", "name", &[("name", text()), ("user", to("sys_user"))]),
        table(
            "sc_cart_item",
            "Cart Item",
            "cat_item",
            &[("cart", to("sc_cart")), ("cat_item", to("sc_cat_item")), ("quantity", FieldKind::Integer)],
        ),
    ]
}

/// Import sets, and two staging tables: one of the platform, and one as people make them.
fn import_schemas() -> Vec<TableSchema> {
    let row = table(
        "sys_import_set_row",
        "Import Set Row",
        "sys_id",
        &[
            ("sys_import_set", to("sys_import_set")),
            ("sys_import_state", text()),
            ("sys_target_table", text()),
            ("sys_target_sys_id", text()),
        ],
    );
    let staging = |name: &str, label: &str, own: &[(&str, FieldKind)]| TableSchema {
        extends: Some(row.name.clone()),
        ..table(name, label, "sys_id", own)
    };
    vec![
        table(
            "sys_import_set",
            "Import Set",
            "number",
            &[("number", text()), ("state", text()), ("table_name", text())],
        )
        .numbered("ISET"),
        row.clone(),
        staging(
            "imp_user",
            "User import",
            &[
                ("user_name", text()),
                ("first_name", text()),
                ("last_name", text()),
                ("email", text()),
                ("title", text()),
            ],
        ),
        staging(
            "u_incident_import",
            "Incident import",
            &[
                ("u_number", text()),
                ("u_short_description", text()),
                ("u_category", text()),
                ("u_caller_id", text()),
                ("u_state", text()),
            ],
        ),
    ]
}

/// Records, those that others refer to first.
pub(crate) fn records() -> Vec<(String, Record)> {
    let mut records = foundation();
    records.extend((0..INCIDENTS).map(|index| ("incident".to_owned(), incident(index))));
    for (table, prefix, count) in
        [("change_request", "CHG", 12), ("sc_request", "REQ", 10), ("sc_req_item", "RITM", 15)]
    {
        records.extend((0..count).map(|index| (table.to_owned(), other_task(table, prefix, index))));
    }
    records.extend((0..8).map(|index| ("kb_knowledge".to_owned(), article(index))));
    records
}

fn foundation() -> Vec<(String, Record)> {
    let mut records = Vec::new();
    let mut add = |table: &str, key: &str, members: &[(&str, &str)]| {
        let mut row = record(members);
        row.insert("sys_id".to_owned(), sys_id_for(&format!("{table}:{key}")));
        records.push((table.to_owned(), row));
    };
    for name in ["IT", "Sales"] {
        add("cmn_department", name, &[("name", name)]);
    }
    for name in ["admin", "itil", "itil_admin", "rest_service"] {
        add("sys_user_role", name, &[("name", name)]);
    }
    for (name, value) in [
        ("instance_name", "sim"),
        ("glide.war", "glide-zurich-07-01-2026__patch1"),
        ("glide.buildtag", "sim"),
    ] {
        add("sys_properties", name, &[("name", name), ("value", value)]);
    }
    for name in GROUPS {
        let description = format!("The {name} team");
        add(
            "sys_user_group",
            name,
            &[
                ("name", name),
                ("description", &description),
                ("active", "true"),
                ("manager", &user_id("fred.luddy")),
            ],
        );
    }
    for (index, agent) in AGENTS.iter().enumerate() {
        let group = GROUPS[index % GROUPS.len()];
        add(
            "sys_user_grmember",
            agent,
            &[("user", &user_id(agent)), ("group", &sys_id_for(&format!("sys_user_group:{group}")))],
        );
    }
    let catalog = sys_id_for("sc_catalog:Service Catalog");
    add("sc_catalog", "Service Catalog", &[("title", "Service Catalog"), ("active", "true")]);
    for title in ["Hardware", "Software"] {
        add("sc_category", title, &[("title", title), ("active", "true"), ("sc_catalog", &catalog)]);
    }
    for (name, category, price) in CATALOG_ITEMS {
        add(
            "sc_cat_item",
            name,
            &[
                ("name", name),
                ("short_description", &format!("Order: {name}")),
                ("price", price),
                ("active", "true"),
                ("category", &sys_id_for(&format!("sc_category:{category}"))),
            ],
        );
    }
    for (index, name) in ITEMS.iter().enumerate() {
        add("cmdb_ci", name, &[("name", name), ("asset_tag", &format!("P10{index:04}"))]);
    }
    for index in 0..PROBLEMS {
        let row = other_task("problem", "PRB", index);
        records.push(("problem".to_owned(), row));
    }
    records
}

fn incident(index: usize) -> Record {
    let (category, subcategory, subject) = SUBJECTS[index % SUBJECTS.len()];
    let state = ["1", "2", "2", "3", "6", "7", "1", "2"][index % 8];
    let open = !matches!(state, "6" | "7");
    let mut row = task("incident", "INC", index, subject, state, open);
    let caller = CALLERS[index % CALLERS.len()];
    let opened_by = if index.is_multiple_of(3) { "beth.anglin" } else { caller };
    let problem = if index % 10 == 4 {
        sys_id_for(&format!("problem:{}", index / 10 % PROBLEMS))
    } else {
        String::new()
    };
    row.extend(record(&[
        ("caller_id", &user_id(caller)),
        ("opened_by", &user_id(opened_by)),
        ("category", category),
        ("subcategory", subcategory),
        ("contact_type", ["phone", "email", "self-service"][index % 3]),
        ("problem_id", &problem),
        ("reopen_count", "0"),
    ]));
    if !open {
        row.extend(record(&[
            ("close_code", "Solution provided"),
            ("close_notes", "Restarted and verified with the caller."),
            ("resolved_at", &instant(index, 5)),
            ("resolved_by", &user_id(AGENTS[index % AGENTS.len()])),
        ]));
    }
    row
}

fn other_task(table: &str, prefix: &str, index: usize) -> Record {
    let (_, _, subject) = SUBJECTS[(index * 3) % SUBJECTS.len()];
    let subject = match table {
        "problem" => format!("Recurring: {subject}"),
        "change_request" => format!("Replace {}", ITEMS[index % ITEMS.len()]),
        _ => format!("New laptop for {}", CALLERS[index % CALLERS.len()]),
    };
    let open = !index.is_multiple_of(4);
    let mut row = task(table, prefix, index, &subject, if open { "1" } else { "3" }, open);
    let caller = user_id(CALLERS[index % CALLERS.len()]);
    let own: Vec<(&str, String)> = match table {
        "problem" => vec![("known_error", (index % 2 == 1).to_string())],
        "change_request" => vec![
            ("type", "normal".to_owned()),
            ("risk", "moderate".to_owned()),
            ("start_date", instant(index, 24)),
            ("end_date", instant(index, 26)),
        ],
        "sc_request" => vec![("requested_for", caller), ("stage", "requested".to_owned())],
        _ => vec![
            ("request", sys_id_for(&format!("sc_request:{}", index % 10))),
            ("quantity", "1".to_owned()),
            ("stage", "fulfillment".to_owned()),
        ],
    };
    row.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    row
}

/// What every task has. The `sys_id` is that of `table:index`.
fn task(table: &str, prefix: &str, index: usize, subject: &str, state: &str, open: bool) -> Record {
    let (impact, urgency) = (index % 3 + 1, index / 3 % 3 + 1);
    let priority = impact + urgency - 1;
    let assigned_to =
        if index.is_multiple_of(5) { String::new() } else { user_id(AGENTS[index % AGENTS.len()]) };
    let group = sys_id_for(&format!("sys_user_group:{}", GROUPS[index % GROUPS.len()]));
    record(&[
        ("sys_id", &sys_id_for(&format!("{table}:{index}"))),
        ("number", &format!("{prefix}{:07}", index + 1)),
        ("short_description", subject),
        ("description", &format!("{subject}. Reported by phone & mail, ticket <{index}>.")),
        ("active", if open { "true" } else { "false" }),
        ("state", state),
        ("impact", &impact.to_string()),
        ("urgency", &urgency.to_string()),
        ("priority", &priority.to_string()),
        ("assigned_to", &assigned_to),
        ("assignment_group", &group),
        ("opened_by", &user_id("beth.anglin")),
        ("opened_at", &instant(index, 0)),
        ("closed_at", if open { "" } else { "2026-10-30 17:00:00" }),
        ("cmdb_ci", &sys_id_for(&format!("cmdb_ci:{}", ITEMS[index % ITEMS.len()]))),
        ("sys_created_on", &instant(index, 0)),
        ("sys_updated_on", &instant(index, 2)),
    ])
}

fn article(index: usize) -> Record {
    let (_, _, subject) = SUBJECTS[index % SUBJECTS.len()];
    record(&[
        ("sys_id", &sys_id_for(&format!("kb_knowledge:{index}"))),
        ("number", &format!("KB{:07}", index + 1)),
        ("short_description", &format!("How to fix: {subject}")),
        ("text", &format!("<p>{subject}: restart, then call us.</p>")),
        ("workflow_state", if index.is_multiple_of(4) { "draft" } else { "published" }),
        ("author", &user_id("beth.anglin")),
        ("active", "true"),
    ])
}

fn user_id(user_name: &str) -> String {
    let demo = UserSettings::demo().into_iter().find(|user| user.user_name == user_name);
    demo.map_or_else(|| sys_id_for(&format!("sys_user:{user_name}")), |user| user.sys_id())
}

/// An instant in September or October 2026, `hours` after the record was opened.
fn instant(index: usize, hours: usize) -> String {
    let hour = index * 7 + hours;
    let (day, month) = (hour / 24 % 28 + 1, 9 + hour / (24 * 28) % 2);
    format!("2026-{month:02}-{day:02} {:02}:{:02}:00", hour % 24, index * 13 % 60)
}

impl TableSchema {
    fn numbered(mut self, prefix: &str) -> Self {
        self.number_prefix = Some(prefix.to_owned());
        self
    }

    fn extending(mut self, parent: &str, number_prefix: &str) -> Self {
        self.extends = Some(parent.to_owned());
        self.numbered(number_prefix)
    }
}

/// A table with the fields that every table has, and its own.
fn table(name: &str, label: &str, display: &str, own: &[(&str, FieldKind)]) -> TableSchema {
    let common = [
        ("sys_id", text()),
        ("sys_class_name", text()),
        ("sys_created_on", FieldKind::DateTime),
        ("sys_created_by", text()),
        ("sys_updated_on", FieldKind::DateTime),
        ("sys_updated_by", text()),
        ("sys_mod_count", FieldKind::Integer),
    ];
    let fields = common.iter().chain(own).map(|(name, kind)| Field {
        name: (*name).to_owned(),
        label: label_of(name),
        kind: kind.clone(),
    });
    TableSchema {
        name: name.to_owned(),
        label: label.to_owned(),
        extends: None,
        display: display.to_owned(),
        number_prefix: None,
        fields: fields.collect(),
    }
}

/// `assigned_to` → `Assigned to`.
fn label_of(name: &str) -> String {
    let words = name.trim_start_matches("sys_").replace('_', " ");
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn text() -> FieldKind {
    FieldKind::String
}

fn yes_no() -> FieldKind {
    FieldKind::Boolean
}

fn to(table: &str) -> FieldKind {
    FieldKind::Reference(table.to_owned())
}

fn one_of(choices: &[(&str, &str)]) -> FieldKind {
    FieldKind::Choice(
        choices.iter().map(|(value, label)| ((*value).to_owned(), (*label).to_owned())).collect(),
    )
}

const INCIDENTS: usize = 80;
const PROBLEMS: usize = 6;
const TASK_STATES: &[(&str, &str)] = &[
    ("-5", "Pending"),
    ("1", "Open"),
    ("2", "Work in Progress"),
    ("3", "Closed Complete"),
    ("4", "Closed Incomplete"),
];
const INCIDENT_STATES: &[(&str, &str)] = &[
    ("1", "New"),
    ("2", "In Progress"),
    ("3", "On Hold"),
    ("6", "Resolved"),
    ("7", "Closed"),
    ("8", "Canceled"),
];
const PRIORITIES: &[(&str, &str)] = &[
    ("1", "1 - Critical"),
    ("2", "2 - High"),
    ("3", "3 - Moderate"),
    ("4", "4 - Low"),
    ("5", "5 - Planning"),
];
const GROUPS: [&str; 4] = ["Service Desk", "Network", "Database", "Hardware"];
const AGENTS: [&str; 5] = ["beth.anglin", "david.loo", "fred.luddy", "bow.ruggeri", "svc.integration"];
const CALLERS: [&str; 4] = ["abel.tuter", "joe.employee", "beth.anglin", "bow.ruggeri"];
const ITEMS: [&str; 6] =
    ["mail-gw-01", "vpn-edge-02", "SAP Financials", "laptop-pool-7", "db-cluster-3", "print-server-1"];
/// Name, category, price.
const CATALOG_ITEMS: [(&str, &str, &str); 5] = [
    ("Standard Laptop", "Hardware", "$1,100.00"),
    ("Developer Laptop", "Hardware", "$2,400.00"),
    ("External Monitor", "Hardware", "$240.00"),
    ("Office Suite", "Software", "$120.00"),
    ("Diagram Editor", "Software", "$60.00"),
];
const SUBJECTS: [(&str, &str, &str); 10] = [
    ("network", "vpn", "Unable to connect to VPN"),
    ("software", "email", "Email server is down"),
    ("hardware", "disk", "Need access to sales DB for the West"),
    ("inquiry", "internal application", "Password reset does not arrive"),
    ("database", "oracle", "Database replication lags behind"),
    ("software", "email", "Can't open attachments in email"),
    ("network", "wireless", "Wi-Fi drops in building C"),
    ("hardware", "keyboard", "Keyboard types \"é\" instead of \"e\""),
    ("software", "os", "Laptop restarts during updates"),
    ("inquiry", "antivirus", "Antivirus warning after sign-in"),
];
