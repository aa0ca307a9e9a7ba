//! Secrets are named in settings, never written there: `file:PATH`, `env:NAME` or `credential:NAME`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

/// Reads the secret that `name` names. A relative path starts at `base`, the folder of the settings file.
///
/// # Errors
/// Says which setting, what is wrong, and what to do; never the secret.
pub(crate) fn read(setting: &str, name: &str, base: &Path) -> Result<Zeroizing<String>> {
    match name.split_once(':') {
        Some(("file", path)) => read_file(setting, &base.join(path)),
        Some(("env", variable)) => {
            #[expect(clippy::disallowed_methods, reason = "settings are read here")]
            let value = std::env::var(variable);
            value
                .map(Zeroizing::new)
                .with_context(|| format!("{setting}: environment variable {variable} is not set"))
        }
        Some(("credential", credential)) => {
            #[expect(clippy::disallowed_methods, reason = "settings are read here")]
            let folder = std::env::var("CREDENTIALS_DIRECTORY").with_context(|| {
                format!("{setting}: there are no systemd credentials; add LoadCredential={credential}:… to the unit")
            })?;
            read_file(setting, &PathBuf::from(folder).join(credential))
        }
        _ => bail!(
            "{setting}: write file:PATH, env:NAME or credential:NAME; a secret is never written into settings"
        ),
    }
}

fn read_file(setting: &str, path: &Path) -> Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(path);
    text.map(Zeroizing::new).with_context(|| format!("{setting}: {} cannot be read", path.display()))
}
