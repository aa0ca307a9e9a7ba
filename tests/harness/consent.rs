//! As much of a browser as a consent needs: cookies by origin, redirects one at a time.

use http::{Method, StatusCode};
use url::Url;

use super::http::{Reply, request};

/// A person's browser without its screen.
#[derive(Debug, Default)]
pub struct WebClient {
    /// Origin, name, value.
    cookies: Vec<(String, String, String)>,
}

impl WebClient {
    pub fn new() -> Self {
        Self::default()
    }

    #[track_caller]
    pub fn get(&mut self, url: &str) -> Reply {
        self.send(&Method::GET, url)
    }

    /// Presses the button of the page at `url`: an empty form of the same origin.
    #[track_caller]
    pub fn press(&mut self, url: &str) -> Reply {
        self.send(&Method::POST, url)
    }

    /// A GET that may find nobody.
    ///
    /// # Errors
    /// Nobody answers, or the answer breaks off.
    pub fn try_get(&mut self, url: &str) -> Result<Reply, String> {
        self.try_send(&Method::GET, url)
    }

    #[track_caller]
    fn send(&mut self, method: &Method, url: &str) -> Reply {
        self.try_send(method, url)
            .unwrap_or_else(|error| panic!("{method} {}: {error}", Url::parse(url).unwrap().path()))
    }

    fn try_send(&mut self, method: &Method, url: &str) -> Result<Reply, String> {
        let origin = Url::parse(url).unwrap().origin().ascii_serialization();
        let mut message = request(method.clone(), url);
        if *method == Method::POST {
            message = message.header("origin", &origin).header("sec-fetch-site", "same-origin");
        }
        let held = self.cookies.iter().filter(|(at, _, _)| *at == origin);
        let held: Vec<String> = held.map(|(_, name, value)| format!("{name}={value}")).collect();
        if !held.is_empty() {
            message = message.header("cookie", &held.join("; "));
        }
        let reply = message.try_send()?;
        for cookie in reply.headers.get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.retain(|(at, held, _)| !(*at == origin && held == name));
                self.cookies.push((origin.clone(), name.to_owned(), value.to_owned()));
            }
        }
        Ok(reply)
    }

    /// Opens the connect link and presses its button: the instance's address, with `state` and all.
    #[track_caller]
    pub fn begin(&mut self, link: &str) -> String {
        let page = self.get(link).expect(StatusCode::OK);
        assert!(page.text().contains("<form"), "{}", page.text());
        let reply = self.press(link).expect(StatusCode::SEE_OTHER);
        location(&reply, link)
    }

    /// Lets the instance (which approves by itself) send the browser on: the callback's address, with code and state.
    #[track_caller]
    pub fn approve(&mut self, at_instance: &str) -> String {
        let reply = self.get(at_instance).expect(StatusCode::FOUND);
        location(&reply, at_instance)
    }

    /// The whole consent; answers the result page.
    #[track_caller]
    pub fn consent(&mut self, link: &str) -> Reply {
        let at_instance = self.begin(link);
        let callback = self.approve(&at_instance);
        let reply = self.get(&callback).expect(StatusCode::SEE_OTHER);
        let result = location(&reply, &callback);
        self.get(&result)
    }
}

/// Where an answer redirects to, absolute.
#[track_caller]
fn location(reply: &Reply, from: &str) -> String {
    Url::parse(from).unwrap().join(reply.header("location")).unwrap().into()
}
