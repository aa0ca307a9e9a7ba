//! `bearerd init`: the key file, the first admin key, the settings file.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bearerd_admin::AdminKeys;
use bearerd_crypto::KeyRing;
use bearerd_policy::{ApiKey, KeyKind};

/// What was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) settings: PathBuf,
    pub(crate) master_key: PathBuf,
    pub(crate) admin_key: ApiKey,
}

/// Makes everything in `folder`, which may exist. Nothing that exists is overwritten.
///
/// # Errors
/// Names the file that is in the way, or that could not be written.
pub(crate) fn init(folder: &Path) -> Result<Made> {
    fs::create_dir_all(folder).with_context(|| format!("folder {} cannot be made", folder.display()))?;
    let folder =
        fs::canonicalize(folder).with_context(|| format!("folder {} cannot be used", folder.display()))?;
    let (settings, master_key) = (folder.join("bearerd.toml"), folder.join("master.key"));
    for path in [&settings, &master_key] {
        if path.exists() {
            bail!("{} exists already and is left as it is; choose another folder with --dir", path.display());
        }
    }
    let admin_key = ApiKey::generate(KeyKind::Admin);
    write_new(&master_key, KeyRing::new_key_file().as_bytes(), 0o600)?;
    write_new(&settings, settings_text(&admin_key).as_bytes(), 0o644)?;
    Ok(Made { settings, master_key, admin_key })
}

fn settings_text(admin_key: &ApiKey) -> String {
    format!(
        "# Written by `bearerd init`. Every setting with its default: config/bearerd.toml of the project.\n\
         master_key = \"file:master.key\"\n\
         store = \"embedded\"\n\
         \n\
         [connect]\n\
         # Where browsers reach the connect door; ServiceNow redirects there. Use https in production.\n\
         public_url = \"http://127.0.0.1:8081\"\n\
         \n\
         [admin]\n\
         # Admits the admin key that `bearerd init` printed; holds its hash only.\n\
         bootstrap_key = \"{}\"\n",
        AdminKeys::setting_for(admin_key)
    )
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}
