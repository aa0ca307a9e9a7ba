//! The HTML the instance shows people: sign-in with consent, an error, and the page of a hibernating instance. No
//! script, nothing from outside.

use crate::message::escape;

/// What the consent page shows and carries on.
pub(crate) struct ConsentPage<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) scope: &'a str,
    /// The authorization request's parameters, repeated by the form.
    pub(crate) parameters: &'a [(String, String)],
    /// Why the last try failed.
    pub(crate) problem: Option<&'a str>,
}

pub(crate) fn consent(page: &ConsentPage<'_>) -> String {
    let problem = page
        .problem
        .map(|text| format!("<p class=\"problem\" role=\"alert\">{}</p>", escape(text)))
        .unwrap_or_default();
    let field = |(name, value): &(String, String)| {
        format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value))
    };
    let hidden = page.parameters.iter().map(field).collect::<Vec<_>>().concat();
    let body = format!(
        "<h1>Allow access</h1>\
         <p><strong>{client}</strong> would like to connect to your ServiceNow account with scope \
         <code>{scope}</code>.</p>{problem}\
         <form method=\"post\" action=\"/oauth_auth.do\">{hidden}\
         <label for=\"user_name\">User name</label>\
         <input id=\"user_name\" name=\"user_name\" autocomplete=\"username\" autofocus>\
         <label for=\"user_password\">Password</label>\
         <input id=\"user_password\" name=\"user_password\" type=\"password\" autocomplete=\"current-password\">\
         <div class=\"buttons\"><button id=\"allow\" name=\"decision\" value=\"allow\">Allow</button>\
         <button id=\"deny\" name=\"decision\" value=\"deny\" class=\"second\">Deny</button></div></form>\
         <p class=\"note\">This is a simulator. Never enter a real password.</p>",
        client = escape(page.client_id),
        scope = escape(page.scope),
    );
    document("Allow access | ServiceNow", &body)
}

pub(crate) fn problem(message: &str) -> String {
    document(
        "Error | ServiceNow",
        &format!("<h1>{}</h1><p>The request was not answered.</p>", escape(message)),
    )
}

/// What every route of a hibernating developer instance answers, with status 200.
pub(crate) fn hibernating() -> String {
    document(
        "Instance Hibernating page",
        "<h1>Your instance is hibernating.</h1><p>Sign in to the developer site to wake it up.</p>",
    )
}

pub(crate) fn maintenance() -> String {
    document("ServiceNow", "<h1>Please wait</h1><p>The instance is being upgraded.</p>")
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>"
    )
}

const STYLE: &str = "body{margin:0;background:#eef1f3;color:#1f2a33;font:16px/1.5 system-ui,sans-serif}\
main{max-width:26rem;margin:8vh auto;background:#fff;padding:2rem;border-radius:8px;box-shadow:0 1px 4px #0003}\
h1{font-size:1.4rem;margin-top:0}label{display:block;margin-top:1rem;font-weight:600}\
input{width:100%;box-sizing:border-box;padding:.6rem;border:1px solid #76838c;border-radius:4px;font:inherit}\
.buttons{display:flex;gap:.75rem;margin-top:1.5rem}\
button{flex:1;padding:.7rem;border:1px solid #0b5c46;border-radius:4px;background:#0b5c46;color:#fff;font:inherit}\
button.second{background:#fff;color:#0b5c46}.problem{color:#a30d2d;font-weight:600}.note{color:#55626b;font-size:.85rem}";
