//! Settings: the file, then the environment over it, parsed once into what each crate takes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bearerd_admin::AdminSettings;
use bearerd_audit::AccessSettings;
use bearerd_connect::ConnectSettings;
use bearerd_control::InstanceRules;
use bearerd_crypto::KeyRing;
use bearerd_model::SecretText;
use bearerd_net::{EgressSettings, TlsSettings};
use bearerd_proxy::ProxySettings;
use bearerd_store_redis::RedisSettings;
use bearerd_tokens::TokenSettings;
use config::{Config, Environment, File, FileFormat, Value, ValueKind};
use serde::Deserialize;

use crate::{secrets, settings_keys};

/// All of `config/bearerd.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) master_key: String,
    pub(crate) store: StoreKind,
    pub(crate) proxy: ProxySettings,
    pub(crate) connect: ConnectSettings,
    pub(crate) admin: AdminSettings,
    pub(crate) access: AccessSettings,
    pub(crate) tokens: TokenSettings,
    pub(crate) instances: InstanceSettings,
    pub(crate) egress: EgressSettings,
    pub(crate) embedded: EmbeddedSettings,
    pub(crate) redis: RedisFileSettings,
    pub(crate) process: ProcessSettings,
    /// Folder of the settings file: where relative paths of secrets start.
    #[serde(skip)]
    pub(crate) base: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum StoreKind {
    Embedded,
    Redis,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct InstanceSettings {
    hosts: Vec<String>,
    allow_loopback: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EmbeddedSettings {
    pub(crate) path: PathBuf,
}

/// `[redis]`, with the passwords still named.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RedisFileSettings {
    url: String,
    sentinels: Vec<String>,
    sentinel_service: String,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
    cluster: Vec<String>,
    replicas_min: u32,
    replicas_timeout_ms: u64,
    username: Option<String>,
    password: Option<String>,
    ca_file: Option<PathBuf>,
    connect_timeout_s: u64,
    response_timeout_s: u64,
    key_prefix: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProcessSettings {
    pub(crate) drain_s: u64,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

// Read by hand, so that a wrong word is answered with the right ones.
impl TryFrom<String> for StoreKind {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "embedded" => Ok(Self::Embedded),
            "redis" => Ok(Self::Redis),
            _ => Err(format!("{word:?} is not known; write embedded or redis")),
        }
    }
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{word:?} is not known; write text or json")),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            master_key: "file:master.key".to_owned(),
            store: StoreKind::Embedded,
            proxy: ProxySettings::default(),
            connect: ConnectSettings::default(),
            admin: AdminSettings::default(),
            access: AccessSettings::default(),
            tokens: TokenSettings::default(),
            instances: InstanceSettings::default(),
            egress: EgressSettings::default(),
            embedded: EmbeddedSettings::default(),
            redis: RedisFileSettings::default(),
            process: ProcessSettings::default(),
            base: PathBuf::new(),
        }
    }
}

impl Default for InstanceSettings {
    fn default() -> Self {
        let rules = InstanceRules::default();
        Self { hosts: rules.hosts, allow_loopback: rules.allow_loopback }
    }
}

impl Default for EmbeddedSettings {
    fn default() -> Self {
        Self { path: "bearerd.redb".into() }
    }
}

impl Default for RedisFileSettings {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            sentinels: vec![],
            sentinel_service: "mymaster".to_owned(),
            sentinel_username: None,
            sentinel_password: None,
            cluster: vec![],
            replicas_min: 0,
            replicas_timeout_ms: 1000,
            username: None,
            password: None,
            ca_file: None,
            connect_timeout_s: 5,
            response_timeout_s: 2,
            key_prefix: "bearerd".to_owned(),
        }
    }
}

impl Default for ProcessSettings {
    fn default() -> Self {
        Self { drain_s: 20, log: "info".to_owned(), log_format: LogFormat::Text }
    }
}

/// Where the settings file is looked for when none is named.
const FILE_DEFAULTS: [&str; 2] = ["bearerd.toml", "/etc/bearerd/bearerd.toml"];
const ENVIRONMENT_PREFIX: &str = "BEARERD";
/// Settings that are lists: in the environment, parted by commas.
const LISTS: [&str; 11] = [
    "proxy.hosts",
    "proxy.pass_request_headers",
    "proxy.pass_answer_headers",
    "proxy.trusted_proxies",
    "connect.trusted_proxies",
    "admin.trusted_proxies",
    "instances.hosts",
    "egress.no_proxy",
    "egress.allow_private_instances",
    "redis.sentinels",
    "redis.cluster",
];

impl Settings {
    /// Reads the file (`path`, else the first default that exists, else none) and the environment.
    ///
    /// # Errors
    /// One line: which setting, what is wrong, what to write.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        Self::layered(path, Some(environment()))
    }

    /// Reads the file alone: what the environment says is meant for another daemon.
    ///
    /// # Errors
    /// As [`Self::read`].
    #[cfg(feature = "demo")]
    pub(crate) fn read_file(path: &Path) -> Result<Self> {
        Self::layered(Some(path), None)
    }

    fn layered(path: Option<&Path>, environment: Option<Environment>) -> Result<Self> {
        let path = match path {
            Some(path) if path.is_file() => Some(path.to_path_buf()),
            Some(path) => bail!("settings file {} does not exist; `bearerd init` writes one", path.display()),
            None => FILE_DEFAULTS.iter().map(PathBuf::from).find(|path| path.is_file()),
        };
        let mut builder = Config::builder();
        if let Some(path) = &path {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("settings file {} cannot be read", path.display()))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        if let Some(environment) = environment {
            builder = builder.add_source(environment);
        }
        let source =
            path.as_deref().map_or_else(|| "the environment".to_owned(), |path| path.display().to_string());
        let config = builder.build().map_err(|error| {
            anyhow::anyhow!("{source} is not valid TOML: {}", one_line(&error.to_string()))
        })?;
        refuse_unknown(&config.cache, &source)?;
        let mut settings: Self = config
            .try_deserialize()
            .map_err(|error| anyhow::anyhow!("{source}: {}", one_line(&error.to_string())))?;
        settings.start_paths_at(path.as_deref().and_then(Path::parent).unwrap_or(Path::new("")));
        settings.fill_egress_from_environment();
        settings.check()?;
        Ok(settings)
    }

    /// Relative paths start at `base`: those of secrets when they are read, all others from here on.
    fn start_paths_at(&mut self, base: &Path) {
        let doors = [&mut self.proxy.tls, &mut self.connect.tls, &mut self.admin.tls];
        let certificates = doors.into_iter().flatten().flat_map(TlsSettings::files_mut);
        let authorities = [&mut self.egress.ca_file, &mut self.redis.ca_file];
        let others = authorities.into_iter().chain([&mut self.tokens.spill_dir]).flatten();
        for path in certificates.chain(others).chain([&mut self.access.path, &mut self.embedded.path]) {
            *path = base.join(&*path);
        }
        base.clone_into(&mut self.base);
    }

    fn check(&self) -> Result<()> {
        self.proxy.check()?;
        self.access.check()?;
        self.connect.rules()?;
        self.tokens.validate().map_err(anyhow::Error::msg)?;
        for (name, value, range) in [
            ("process.drain_s", self.process.drain_s, 1..=600),
            ("admin.connections_max", self.admin.connections_max as u64, 1..=10_000),
            ("redis.connect_timeout_s", self.redis.connect_timeout_s, 1..=60),
            ("redis.response_timeout_s", self.redis.response_timeout_s, 1..=60),
            ("redis.replicas_min", u64::from(self.redis.replicas_min), 0..=10),
            ("redis.replicas_timeout_ms", self.redis.replicas_timeout_ms, 10..=60_000),
        ] {
            if !range.contains(&value) {
                bail!("{name} is {value}; it may be {} to {}", range.start(), range.end());
            }
        }
        for pattern in &self.instances.hosts {
            let name = pattern.strip_prefix("*.").unwrap_or(pattern);
            let is_name = !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
            if !is_name {
                bail!("instances.hosts holds {pattern:?}; write a host name, or *. and a name");
            }
        }
        Ok(())
    }

    /// `HTTPS_PROXY` and `NO_PROXY`, in either case, where the settings say nothing.
    fn fill_egress_from_environment(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "settings are read here")]
        let read = |name: &str| {
            let named = [name.to_owned(), name.to_ascii_lowercase()];
            named.iter().find_map(|name| std::env::var(name).ok()).filter(|value| !value.is_empty())
        };
        if self.egress.proxy.is_none() {
            self.egress.proxy = read("HTTPS_PROXY");
        }
        if self.egress.no_proxy.is_empty() {
            let listed = read("NO_PROXY").unwrap_or_default();
            self.egress.no_proxy =
                listed.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        }
    }

    /// # Errors
    /// Says where the key was looked for, and names `bearerd init`.
    pub(crate) fn key_ring(&self) -> Result<KeyRing> {
        let remedy =
            "make one with `bearerd init`, or point master_key at the one that this store was made with";
        let text = secrets::read("master_key", &self.master_key, &self.base)
            .with_context(|| format!("no master key: {remedy}"))?;
        KeyRing::parse(&text)
            .with_context(|| format!("master_key: {} is not a key file: {remedy}", self.master_key))
    }

    /// # Errors
    /// A password cannot be read.
    pub(crate) fn redis_settings(&self) -> Result<RedisSettings> {
        let secret = |name: &str, place: &Option<String>| -> Result<Option<SecretText>> {
            let Some(place) = place else { return Ok(None) };
            let text = secrets::read(name, place, &self.base)?;
            let text = text.trim_end_matches(['\r', '\n']).to_owned();
            SecretText::parse(text).with_context(|| name.to_owned()).map(Some)
        };
        Ok(RedisSettings {
            sentinels: self.redis.sentinels.clone(),
            sentinel_service: self.redis.sentinel_service.clone(),
            sentinel_username: self.redis.sentinel_username.clone(),
            sentinel_password: secret("redis.sentinel_password", &self.redis.sentinel_password)?,
            cluster: self.redis.cluster.clone(),
            replicas_min: self.redis.replicas_min,
            replicas_timeout: Duration::from_millis(self.redis.replicas_timeout_ms),
            username: self.redis.username.clone(),
            password: secret("redis.password", &self.redis.password)?,
            ca_file: self.redis.ca_file.clone(),
            connect_timeout: Duration::from_secs(self.redis.connect_timeout_s),
            response_timeout: Duration::from_secs(self.redis.response_timeout_s),
            key_prefix: self.redis.key_prefix.clone(),
            ..RedisSettings::new(self.redis.url.clone())
        })
    }

    pub(crate) fn instance_rules(&self) -> InstanceRules {
        InstanceRules { hosts: self.instances.hosts.clone(), allow_loopback: self.instances.allow_loopback }
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.process.drain_s)
    }
}

/// `BEARERD__SECTION__NAME`, lists separated by commas.
fn environment() -> Environment {
    let environment = Environment::with_prefix(ENVIRONMENT_PREFIX)
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .list_separator(",");
    LISTS.into_iter().fold(environment, Environment::with_list_parse_key)
}

/// # Errors
/// Names the first unknown setting or section, the nearest known one, and where it came from.
fn refuse_unknown(root: &Value, source: &str) -> Result<()> {
    let mut names = BTreeMap::new();
    collect("", root, &mut names);
    for (name, Given { origin, empty_section }) in names {
        let (what, known) = if empty_section {
            ("section", settings_keys::sections())
        } else {
            ("setting", settings_keys::known())
        };
        if !known.contains(&name) {
            let origin = origin.unwrap_or_else(|| source.to_owned());
            bail!(
                "{origin}: there is no {what} {name}; did you mean {}?",
                settings_keys::nearest(&name, known)
            );
        }
    }
    Ok(())
}

/// How a name was given.
struct Given {
    origin: Option<String>,
    /// A section without a setting in it.
    empty_section: bool,
}

/// Every leaf's full name.
fn collect(prefix: &str, value: &Value, names: &mut BTreeMap<String, Given>) {
    match &value.kind {
        ValueKind::Table(table) if !table.is_empty() || prefix.is_empty() => {
            for (name, member) in table {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                collect(&name, member, names);
            }
        }
        _ if prefix.is_empty() => {}
        kind => {
            let empty_section = matches!(kind, ValueKind::Table(_));
            names.insert(
                prefix.to_owned(),
                Given { origin: value.origin().map(str::to_owned), empty_section },
            );
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// The documented file is the truth: it is accepted as it stands, and its values are the defaults.
    #[test]
    fn the_reference_file_states_the_defaults() {
        let parse = |text: &str| -> Settings {
            Config::builder()
                .add_source(File::from_str(text, FileFormat::Toml))
                .build()
                .unwrap()
                .try_deserialize()
                .unwrap()
        };
        let shown = |settings: &Settings| format!("{settings:?}");
        assert_eq!(shown(&parse(settings_keys::REFERENCE)), shown(&parse("")));
    }

    /// … and every optional setting that it shows exists.
    #[test]
    fn the_commented_settings_exist() {
        let text = uncommented();
        let config = Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build().unwrap();
        config.try_deserialize::<Settings>().unwrap();
    }

    /// Every file and folder that the documented file names, so that a new one is not forgotten: wherever the daemon is
    /// started, a relative one is beside the settings file.
    #[test]
    fn relative_paths_start_at_the_settings_file() {
        let mut text = String::new();
        for line in uncommented().lines() {
            let name = line.split_once(" = ").map(|(name, _)| name).unwrap_or_default();
            if name == "path" || name.ends_with("_file") || name.ends_with("_dir") {
                writeln!(text, "{name} = \"relative-{name}\"").unwrap();
            } else if line.starts_with('[') {
                writeln!(text, "{line}").unwrap();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bearerd.toml");
        std::fs::write(&file, &text).unwrap();
        let settings = format!("{:?}", Settings::layered(Some(&file), None).unwrap());
        let count = |what: &str| settings.matches(what).count();
        let given = text.matches("relative-").count();
        assert!(given >= 14, "{text}");
        assert_eq!(count("relative-"), given, "{settings}");
        assert_eq!(count(&format!("\"{}/relative-", folder.path().display())), given, "{settings}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bearerd.toml");
        for (text, expected) in [
            (
                "[proxy]\nbody_typo = 1",
                "there is no setting proxy.body_typo; did you mean proxy.body_idle_timeout_s?",
            ),
            ("[proxy.tabel]", "there is no section proxy.tabel; did you mean proxy.table?"),
            ("[proxi]\n[proxy.table]", "there is no section proxi; did you mean proxy?"),
            ("[[proxy.lisen]]", "there is no setting proxy.lisen; did you mean proxy.listen?"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Settings::layered(Some(&file), None).unwrap_err().to_string();
            assert_eq!(error, format!("{}: {expected}", file.display()));
        }
    }

    /// The documented file with every setting that has no default.
    fn uncommented() -> String {
        settings_keys::REFERENCE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect()
    }
}
