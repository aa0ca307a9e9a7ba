//! Files, addresses and processes.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use rustix::process::{Pid, Signal, kill_process};

/// An address of the machine itself that nobody else uses: all of 127.0.0.0/8 is loopback. On an address of its own
/// a port stays free while its process is restarted, however many tests run beside.
pub fn loopback() -> IpAddr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // 127.0.x.x is left to others; 0 and 255 as the last part are no host's.
    let number = std::process::id().wrapping_mul(64).wrapping_add(count % 64);
    let part = |number: u32| u8::try_from(number % 256).expect("a remainder of 256");
    let (rest, low) = (number / 254, 1 + number % 254);
    Ipv4Addr::new(127, part(1 + rest / 256 % 254), part(rest), part(low)).into()
}

/// A port of `address` on which nothing listens.
pub fn free_port(address: IpAddr) -> u16 {
    TcpListener::bind(SocketAddr::new(address, 0)).unwrap().local_addr().unwrap().port()
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// `target/debug` or `target/release`: where this test was built, and `bearerd` too.
fn build_folder() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folder = this.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().to_path_buf() } else { folder.to_path_buf() }
}

/// `target/e2e`: screenshots, and what failing tests leave behind.
pub fn output_folder() -> PathBuf {
    let folder = build_folder().parent().unwrap().join("e2e");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The binary under test: the one beside this test, or the one that `BEARERD_BINARY` names.
///
/// # Panics
/// It is missing, or older than its sources: cargo does not build it for these tests, `tests/run` does.
pub fn bearerd_binary() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of the daemon")]
    if let Some(named) = std::env::var_os("BEARERD_BINARY") {
        return named.into();
    }
    binary_in(&build_folder()).unwrap_or_else(|why| {
        panic!("{why}; `cargo build -p bearerd --features crash-points` does (or tests/run)")
    })
}

/// The release build, where there is one of the sources as they are.
pub fn release_binary() -> Option<PathBuf> {
    binary_in(&build_folder().parent().unwrap().join("release")).ok()
}

fn binary_in(folder: &Path) -> Result<PathBuf, String> {
    let binary = folder.join("bearerd");
    let built =
        modified(&binary).ok_or_else(|| format!("{} is missing: build it first", binary.display()))?;
    // Cargo lists there what the binary was made of, our other crates included.
    let listed = fs::read_to_string(binary.with_extension("d")).unwrap_or_default();
    let mut sources = listed.split_once(": ").map_or("", |(_, sources)| sources).split_ascii_whitespace();
    match sources.find(|source| modified(Path::new(source)).is_none_or(|changed| changed > built)) {
        Some(changed) => Err(format!("{} is older than {changed}: build it again", binary.display())),
        None => Ok(binary),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Starts a process with its standard output and error appended to `log`, and with nothing of this process's
/// environment but what it needs to find programs.
pub(crate) fn start_logged(command: &mut Command, log: &Path) -> Child {
    let log_file = File::options().create(true).append(true).open(log).unwrap();
    let program = command.get_program().to_owned();
    command
        .stdin(Stdio::null())
        .stdout(log_file.try_clone().unwrap())
        .stderr(log_file)
        .spawn()
        .unwrap_or_else(|error| panic!("{} did not start: {error}; tests/run installs it", program.display()))
}

/// Forgets this process's environment but for the search path: no proxy or setting of the machine reaches a test.
pub(crate) fn bare(command: &mut Command) -> &mut Command {
    #[expect(clippy::disallowed_methods, reason = "a process is started as a person's shell would start it")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("LC_ALL", "C.UTF-8")
}

/// Sends a signal to the process that `child` is.
pub(crate) fn signal(child: &Child, signal: Signal) {
    // It may have ended by itself; whoever waits for it sees that.
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Ends a process at once and waits for its end.
pub(crate) fn end(child: &mut Child) {
    drop(child.kill());
    drop(child.wait());
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
