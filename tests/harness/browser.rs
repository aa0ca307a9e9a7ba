//! Headless Chromium, driven as a person would: open, look, type, press.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{By, ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver};

use super::{
    process::{bare, end, output_folder},
    runtime::{block_on, poll},
};

/// The right to run browsers, one test at a time, and the driver they hang on.
pub struct Browsers {
    driver: Child,
    origin: String,
    _home: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// One browser with a profile of its own: one person.
pub struct Browser {
    session: Option<WebDriver>,
    name: String,
    _profile: TempDir,
}

/// A request that a page made, redirects included.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    pub url: String,
    /// Empty where none was sent.
    pub referer: String,
}

impl Browsers {
    /// Waits for its turn and starts chromedriver on a free port.
    pub fn start() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = tempfile::Builder::new().prefix("bearerd-browser-").tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        bare(&mut command)
            .env("HOME", home.path()) // Chromium writes its caches there
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(output_folder().join("chromedriver.log")).unwrap());
        let mut driver = command.spawn().unwrap_or_else(|error| {
            panic!("chromedriver did not start ({error}): tests/run installs chromium and chromium-driver")
        });
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let port = port.expect("chromedriver says on which port it listens");
        std::thread::spawn(move || lines.for_each(drop)); // or its pipe fills up
        Self { driver, origin: format!("http://127.0.0.1:{port}"), _home: home, _turn: turn }
    }

    /// A new browser with an empty profile, of a phone's width or a desk's.
    pub fn open(&self, name: &str, width: u32) -> Browser {
        let profile = tempfile::Builder::new().prefix("bearerd-profile-").tempdir().unwrap();
        let mut chrome = DesiredCapabilities::chrome();
        for flag in FLAGS {
            chrome.add_arg(flag).unwrap();
        }
        chrome.add_arg(&format!("--window-size={width},900")).unwrap();
        if width < WINDOW_WIDTH_MIN {
            let phone = json!({"deviceMetrics": {"width": width, "height": 844, "pixelRatio": 2.0}});
            chrome.add_experimental_option("mobileEmulation", phone).unwrap();
        }
        chrome.add_arg(&format!("--user-data-dir={}", profile.path().display())).unwrap();
        chrome.set_logging_prefs("performance".to_owned(), LoggingPrefsLogLevel::All).unwrap();
        let session = block_on(WebDriver::new(&self.origin, chrome)).expect("chromium starts");
        block_on(session.set_page_load_timeout(PATIENCE)).unwrap();
        Browser { session: Some(session), name: name.to_owned(), _profile: profile }
    }
}

impl Drop for Browsers {
    fn drop(&mut self) {
        end(&mut self.driver);
    }
}

impl Browser {
    fn session(&self) -> &WebDriver {
        self.session.as_ref().expect("a browser is open until it is dropped")
    }

    #[track_caller]
    pub fn goto(&self, url: &str) {
        block_on(self.session().goto(url)).unwrap();
    }

    /// What the address bar shows.
    pub fn address(&self) -> String {
        block_on(self.session().current_url()).unwrap().into()
    }

    /// The text that a person sees.
    #[track_caller]
    pub fn text(&self) -> String {
        block_on(async { self.session().find(By::Tag("body")).await?.text().await }).unwrap()
    }

    /// Waits until the page says this, and answers all its text.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        let mut seen = String::new();
        let found = poll(PATIENCE, || {
            // Between two pages there may be no body.
            let text_now = block_on(async { self.session().find(By::Tag("body")).await?.text().await });
            seen = text_now.unwrap_or_default();
            seen.contains(text).then_some(())
        });
        if found.is_none() {
            self.screenshot("unexpected");
            panic!("the page at {} never said {text:?}, but:\n{seen}", self.address());
        }
        seen
    }

    #[track_caller]
    pub fn press(&self, css: &str) {
        block_on(async { self.session().find(By::Css(css)).await?.click().await }).unwrap();
    }

    #[track_caller]
    pub fn fill(&self, css: &str, text: &str) {
        block_on(async { self.session().find(By::Css(css)).await?.send_keys(text).await }).unwrap();
    }

    /// Signs in on the simulator's page and presses Allow or Deny.
    #[track_caller]
    pub fn sign_in(&self, user: &str, password: &str, button: &str) {
        self.wait_for("Allow access");
        self.fill("#user_name", user);
        self.fill("#user_password", password);
        self.press(button);
    }

    /// Runs a script in the page and answers its value.
    #[track_caller]
    pub fn evaluate(&self, script: &str) -> Value {
        block_on(self.session().execute(script, Vec::new())).unwrap().json().clone()
    }

    /// `target/e2e/{name of the browser}-{what}.png`.
    pub fn screenshot(&self, what: &str) -> PathBuf {
        let path = output_folder().join(format!("{}-{what}.png", self.name));
        block_on(self.session().screenshot(&path)).unwrap();
        path
    }

    /// Every request since the last look, in order, redirects included.
    #[track_caller]
    pub fn requests(&self) -> Vec<SeenRequest> {
        let entries = block_on(self.session().get_log("performance")).unwrap();
        let events = entries.iter().filter_map(|entry| serde_json::from_str::<Value>(&entry.message).ok());
        let sent = events.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        let seen = sent.map(|event| {
            let request = &event["message"]["params"]["request"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            SeenRequest { url: text(&request["url"]), referer: text(&request["headers"]["Referer"]) }
        });
        seen.collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            drop(block_on(session.quit())); // the driver kills what does not close
        }
    }
}

/// Nothing that reaches outside; what the page itself asks for is not touched.
const FLAGS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
];

/// A window is no narrower; a phone must be emulated.
const WINDOW_WIDTH_MIN: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(20);
