//! The admin API's description, made from the handlers themselves: a route is in the document because it is in the
//! router.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        self, ContentBuilder, HeaderBuilder, Ref, RefOr, ResponseBuilder, ServerBuilder,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        schema::{ObjectBuilder, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{connections, integrations, keys, policies, probes, router::App, wire::Problem};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "bearerd admin API",
        description = "What operators do: register OAuth clients of ServiceNow instances (integrations), hold grants \
            under them (connections), and say which internal service may call what (policies, keys). Errors are \
            RFC 9457 problems with a stable code and a fix. Lists come in parts: give next as cursor. A single \
            resource has an ETag; send it as If-Match to change only what you have seen, or If-None-Match: * to \
            create only."
    ),
    components(schemas(Problem)),
    security(("admin_key" = [])),
    tags(
        (name = "integrations", description = "Our OAuth client as registered at one instance"),
        (name = "connections", description = "One grant held under one integration"),
        (name = "keys", description = "Caller keys: the API keys of internal services"),
        (name = "policies", description = "What a caller may do with which connections"),
        (name = "process", description = "How this process stands"),
    ),
    modifiers(&Common)
)]
struct Document;

/// The router and its description.
pub(crate) fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(integrations::list))
        .routes(routes!(integrations::show, integrations::put, integrations::delete))
        .routes(routes!(connections::list))
        .routes(routes!(connections::show, connections::put, connections::delete))
        .routes(routes!(connections::reauthorize))
        .routes(routes!(connections::confirm))
        .routes(routes!(connections::refresh))
        .routes(routes!(connections::test))
        .routes(routes!(connections::freeze))
        .routes(routes!(connections::unfreeze))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::show, keys::change, keys::delete))
        .routes(routes!(keys::rotate))
        .routes(routes!(policies::list))
        .routes(routes!(policies::show, policies::put, policies::delete))
        .routes(routes!(policies::explain))
        .routes(routes!(probes::status))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::metrics))
}

/// The description as a document. `public_url`: where the door is reached.
pub(crate) fn document(public_url: Option<&str>) -> openapi::OpenApi {
    let mut document = documented().into_openapi();
    if let Some(url) = public_url {
        document.servers = Some(vec![ServerBuilder::new().url(url).build()]);
    }
    for (path, item) in &mut document.paths.paths {
        let one = path.ends_with("/{id}");
        // Operation, whether its answer has an ETag, whether it takes conditions.
        let operations = [
            (&mut item.get, one, false),
            (&mut item.put, one, one),
            (&mut item.post, path == "/v1/keys", false),
            (&mut item.delete, false, one),
        ];
        for (operation, tagged, conditional) in operations {
            if let Some(operation) = operation {
                describe(operation, tagged, conditional);
            }
        }
    }
    document
}

/// `bearerd openapi`: the document as text.
///
/// # Panics
/// Never: the document is data of our own.
pub fn openapi_json() -> String {
    let mut text = document(None).to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}

/// Adds what all operations share: an id of its own, problems, `ETag`s, conditions.
fn describe(operation: &mut Operation, tagged: bool, conditional: bool) {
    let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
    operation.operation_id = operation.operation_id.take().map(|name| format!("{tag}_{name}"));
    let text = || ObjectBuilder::new().schema_type(Type::String).build();
    if tagged {
        let etag =
            HeaderBuilder::new().schema(Some(text())).description(Some("The revision, for If-Match")).build();
        for (status, response) in &mut operation.responses.responses {
            if let (true, RefOr::T(response)) = (status.starts_with('2'), response) {
                response.headers.insert("ETag".to_owned(), etag.clone().into());
            }
        }
    }
    if conditional {
        let condition = |name: &str, what: &str| -> Parameter {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .schema(Some(text()))
                .description(Some(what))
                .build()
        };
        let parameters = operation.parameters.get_or_insert_default();
        parameters
            .push(condition("If-Match", "Only if it is still at this ETag; * for: only if it exists").into());
        parameters.push(condition("If-None-Match", "*: only if it does not exist yet").into());
    }
    let problem = ResponseBuilder::new()
        .description("It was not done: why, and what to do")
        .content(
            "application/problem+json",
            ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
        )
        .build();
    operation.responses.responses.insert("default".to_owned(), problem.into());
}

/// What the derive cannot say.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut openapi::OpenApi) {
        env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
        document.info.contact = None;
        let admin_key = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("bda_…")
            .description(Some("The admin key that `bearerd init` printed"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("admin_key", SecurityScheme::Http(admin_key));
    }
}
