//! The documents say what the code does.

use bearerd_control::ConsentFault;
use bearerd_proxy::ErrorCode;

const ERRORS: &str = include_str!("../../../docs/errors.md");

/// Every code that a caller or a person in front of a page can meet has its remedy in `docs/errors.md`.
#[test]
fn every_error_code_is_documented() {
    let proxy = ErrorCode::ALL.into_iter().map(ErrorCode::name);
    let connect = [
        ConsentFault::LinkInvalid,
        ConsentFault::StateInvalid,
        ConsentFault::OtherBrowser,
        ConsentFault::OtherIntegration,
        ConsentFault::MalformedCallback,
        ConsentFault::StoreUnavailable,
    ];
    let connect: Vec<&str> = connect.iter().map(ConsentFault::code).collect();
    for code in proxy.chain(connect) {
        assert!(ERRORS.contains(&format!("`{code}`")), "{code} is not in docs/errors.md");
    }
}
