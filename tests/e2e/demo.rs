//! `bearerd demo`, as a newcomer meets it.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bearerd_tests::{bearerd_binary, poll, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// One that runs, with its files in `folder`.
fn demo(folder: &Path) -> Child {
    Command::new(bearerd_binary())
        .arg("demo")
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The printed curl line works as it stands, and Ctrl-C leaves nothing behind.
#[test]
fn the_printed_curl_line_works() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let mut demo = demo(folder.path());
    let mut printed = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    let curl = printed.find(|line| line.trim_start().starts_with("curl "));
    let usable = begun.elapsed();
    let end = |demo: &mut Child| {
        drop(demo.kill());
        drop(demo.wait());
    };
    let Some(curl) = curl else {
        end(&mut demo);
        panic!("bearerd demo printed no curl line");
    };
    let call = format!("{} --max-time 20 -w '\\n%{{http_code}}'", curl.trim());
    let answer = Command::new("sh").args(["-c", &call]).output().unwrap();
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();

    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let status = poll(Duration::from_secs(10), || demo.try_wait().unwrap());
    end(&mut demo);

    println!("from a finished build to a usable demo: {:.2} s (issue 2: under 2 s)", usable.as_secs_f64());
    let (body, code) = answer.rsplit_once('\n').unwrap();
    assert_eq!(code, "200", "{body}");
    let records: serde_json::Value = serde_json::from_str(body).unwrap();
    let records = records["result"].as_array().unwrap();
    assert_eq!(records.len(), 2, "{records:?}");
    assert!(
        records.iter().all(|record| record["number"].as_str().unwrap().starts_with("INC")),
        "{records:?}"
    );
    assert!(usable < Duration::from_secs(30), "{usable:?}");
    assert!(status.expect("Ctrl-C ends the demo").success(), "{status:?}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the demo leaves no files behind");
    wait_until("the proxy door is closed", Duration::from_secs(5), || {
        let gone = Command::new("sh").args(["-c", &call]).output().unwrap();
        (!gone.status.success()).then_some(())
    });
}

/// `bearerd demo | head`: when nobody reads any more, in the middle or after the last line, everything ends by itself.
#[test]
fn it_ends_with_its_reader() {
    for last_read in ["ServiceNow simulator", "Ctrl-C ends everything"] {
        let folder = tempfile::tempdir().unwrap();
        let mut demo = demo(folder.path());
        let mut printed = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
        let reached = printed.any(|line| line.contains(last_read));
        let running = demo.try_wait().unwrap().is_none();
        drop(printed);
        let status = poll(Duration::from_secs(10), || demo.try_wait().unwrap());
        drop(demo.kill());
        drop(demo.wait());
        assert!(reached && running, "{last_read}");
        assert!(status.is_some_and(|status| status.success()), "{last_read}: {status:?}");
        assert_eq!(
            folder.path().read_dir().unwrap().count(),
            0,
            "{last_read}: the demo leaves no files behind"
        );
    }
}
