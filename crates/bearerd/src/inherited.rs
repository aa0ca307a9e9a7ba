//! Sockets that systemd, or whoever speaks its protocol, passed to this process (`sd_listen_fds(3)`).

use anyhow::{Context, Result};
use bearerd_net::InheritedSockets;
use listenfd::ListenFd;

/// Takes the sockets over, once: the variable that counted them is gone afterwards. To be called before there are
/// threads.
///
/// # Errors
/// Something else than a stream socket was passed.
pub(crate) fn take() -> Result<InheritedSockets> {
    #[expect(clippy::disallowed_methods, reason = "the init system's word to this process")]
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut sockets = InheritedSockets::none();
    let mut names = names.split(':');
    for index in 0..passed.len() {
        let name = names.next().unwrap_or_default().to_owned();
        if let Ok(Some(tcp)) = passed.take_tcp_listener(index) {
            sockets.add(name, tcp);
        } else {
            let unix = passed.take_unix_listener(index).with_context(|| {
                format!(
                    "inherited socket {name:?} is neither TCP nor unix: use ListenStream= in the .socket unit"
                )
            })?;
            if let Some(unix) = unix {
                sockets.add(name, unix);
            }
        }
    }
    Ok(sockets)
}
