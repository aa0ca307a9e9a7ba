//! A TCP proxy that misbehaves on command: between a process and its Redis, or the instance. It carries bytes and knows
//! no protocol. Each switch counts at once, for connections that are open and for those to come.
//!
//! What each direction holds back is bounded: [`CHUNK_BYTES`] times [`CHUNKS_HELD_MAX`]; then the sender is not read
//! from any more.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{
    process::{free_port, loopback},
    runtime::{block_on, runtime, wait_until},
};

/// A proxy before one address. Dropping it cuts everything.
pub struct FaultProxy {
    address: SocketAddr,
    faults: Faults,
    accepting: JoinHandle<()>,
}

/// The switches of a [`FaultProxy`]. Clones share them; any thread may turn them.
#[derive(Clone)]
pub struct Faults {
    shared: Arc<Shared>,
}

/// Which way bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    Up,
    /// From the server to the client: answers.
    Down,
    Both,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Way {
    latency: Duration,
    /// Read and thrown away.
    swallow: bool,
    /// Not read, not written, not closed.
    stall: bool,
    drip: Option<(usize, Duration)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Switches {
    up: Way,
    down: Way,
    refuse: bool,
    /// Connections begun before it was this are to be ended so.
    cuts: u64,
    resets: u64,
}

struct Shared {
    target: Mutex<SocketAddr>,
    switches: watch::Sender<Switches>,
    /// Whether connections are accepted now.
    listening: watch::Sender<bool>,
    /// Bytes of the next answer that may pass before its connection is cut.
    cut_answer_after: Mutex<Option<usize>>,
    open: AtomicU64,
    accepted: AtomicU64,
    passed_up: AtomicU64,
    passed_down: AtomicU64,
}

impl FaultProxy {
    /// Listens on a loopback address of its own and passes everything on to `target`.
    pub fn start(target: SocketAddr) -> Self {
        let address = loopback();
        let address = SocketAddr::new(address, free_port(address));
        let listener = block_on(TcpListener::bind(address)).unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            switches: watch::Sender::new(Switches::default()),
            listening: watch::Sender::new(true),
            cut_answer_after: Mutex::new(None),
            open: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            passed_up: AtomicU64::new(0),
            passed_down: AtomicU64::new(0),
        });
        let accepting = runtime().spawn(accept(shared.clone(), address, listener));
        Self { address, faults: Faults { shared }, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The switches, to be turned from elsewhere.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

impl std::ops::Deref for FaultProxy {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Faults {
    /// Connections from now on lead there: a server that came back elsewhere.
    pub fn retarget(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Bytes arrive so much later; throughput stays. Zero ends it.
    pub fn latency(&self, direction: Direction, latency: Duration) {
        self.change(direction, |way| way.latency = latency);
    }

    /// Half-open: bytes are taken from the sender, and reach nobody.
    pub fn swallow(&self, direction: Direction, on: bool) {
        self.change(direction, |way| way.swallow = on);
    }

    /// Half-open: nothing is forwarded, not even an end, and nothing is closed. Off, what was held back arrives.
    pub fn stall(&self, direction: Direction, on: bool) {
        self.change(direction, |way| way.stall = on);
    }

    /// At most `bytes` an interval. `None` ends it.
    pub fn drip(&self, direction: Direction, pace: Option<(usize, Duration)>) {
        self.change(direction, |way| way.drip = pace.map(|(bytes, interval)| (bytes.max(1), interval)));
    }

    /// Ends every open connection in order (FIN at both ends).
    pub fn cut(&self) {
        self.shared.switches.send_modify(|switches| switches.cuts += 1);
    }

    /// Ends every open connection with a reset (RST at both ends).
    pub fn reset(&self) {
        self.shared.switches.send_modify(|switches| switches.resets += 1);
    }

    /// New connections are refused (on) or accepted again (off); open ones go on. Counts once this returns.
    #[track_caller]
    pub fn refuse(&self, on: bool) {
        self.shared.switches.send_modify(|switches| switches.refuse = on);
        let listening = self.shared.listening.subscribe();
        wait_until("the proxy's port opens or closes", Duration::from_secs(10), || {
            (*listening.borrow() != on).then_some(())
        });
    }

    /// The server is gone: new connections are refused, open ones reset.
    #[track_caller]
    pub fn down(&self) {
        self.refuse(true);
        self.reset();
    }

    /// The next connection on which an answer begins is cut after so many of its bytes. Once.
    pub fn cut_answer_after(&self, bytes: usize) {
        *self.shared.cut_answer_after.lock().unwrap() = Some(bytes);
    }

    /// All switches off; what is open goes on, and what was held back arrives.
    #[track_caller]
    pub fn heal(&self) {
        *self.shared.cut_answer_after.lock().unwrap() = None;
        self.shared.switches.send_modify(|switches| {
            *switches = Switches { cuts: switches.cuts, resets: switches.resets, ..Switches::default() };
        });
        self.refuse(false);
    }

    /// Connections open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes passed on so far: up, down.
    pub fn passed(&self) -> (u64, u64) {
        (self.shared.passed_up.load(Ordering::SeqCst), self.shared.passed_down.load(Ordering::SeqCst))
    }

    fn change(&self, direction: Direction, change: impl Fn(&mut Way)) {
        self.shared.switches.send_modify(|switches| {
            if direction != Direction::Down {
                change(&mut switches.up);
            }
            if direction != Direction::Up {
                change(&mut switches.down);
            }
        });
    }
}

async fn accept(shared: Arc<Shared>, address: SocketAddr, listener: TcpListener) {
    let mut switches = shared.switches.subscribe();
    let mut connections = JoinSet::new(); // ended with this task
    let mut listener = Some(listener);
    loop {
        while connections.try_join_next().is_some() {}
        if switches.borrow_and_update().refuse {
            listener = None;
            shared.listening.send_replace(false);
            if switches.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &listener else {
            listener = Some(bind_again(address).await);
            shared.listening.send_replace(true);
            continue;
        };
        tokio::select! {
            changed = switches.changed() => if changed.is_err() { return },
            accepted = open.accept() => if let Ok((client, _)) = accepted {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                if connections.len() < CONNECTIONS_MAX {
                    connections.spawn(carry(shared.clone(), client));
                }
            },
        }
    }
}

async fn bind_again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => sleep(Duration::from_millis(5)).await, // the address is this proxy's own: it comes free
        }
    }
}

/// Counts a connection as open until dropped.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One connection, from both ends open to both closed.
async fn carry(shared: Arc<Shared>, mut client: TcpStream) {
    shared.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(&shared);
    let mut switches = shared.switches.subscribe();
    let began = *switches.borrow_and_update();
    let target = *shared.target.lock().unwrap();
    let Ok(mut server) = TcpStream::connect(target).await else {
        drop(client.set_zero_linger()); // nobody there: as if this port were closed too
        return;
    };
    drop((client.set_nodelay(true), server.set_nodelay(true))); // only a matter of speed
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(&shared, Direction::Up, from_client, to_server);
        let down = pump(&shared, Direction::Down, from_server, to_client);
        let both = async { tokio::try_join!(up, down).map(|_| ()) };
        tokio::select! {
            result = both => match result {
                Ok(()) => End::Done,
                Err(End::Cut) => End::Cut,
                // One end is gone by force: the other learns of it the same way.
                Err(_) => End::Reset,
            },
            end = told_to_end(&mut switches, began) => end,
        }
    };
    match end {
        End::Done => {}
        End::Cut => {
            drop(client.shutdown().await);
            drop(server.shutdown().await);
        }
        End::Reset => drop((client.set_zero_linger(), server.set_zero_linger())),
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Cut,
    Reset,
}

async fn told_to_end(switches: &mut watch::Receiver<Switches>, began: Switches) -> End {
    loop {
        let now = *switches.borrow_and_update();
        if now.resets != began.resets {
            return End::Reset;
        }
        if now.cuts != began.cuts || switches.changed().await.is_err() {
            return End::Cut;
        }
    }
}

/// Carries one direction to its end; then tells the receiver of it.
async fn pump(
    shared: &Shared,
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Result<(), End> {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_HELD_MAX);
    let reading = async {
        let mut switches = shared.switches.subscribe();
        loop {
            running(&mut switches, direction).await;
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            match from.read_buf(&mut chunk).await {
                Ok(0) => break,
                Ok(_) if sender.send((Instant::now(), chunk)).await.is_ok() => {}
                Ok(_) | Err(_) => return Err(End::Reset),
            }
        }
        drop(sender);
        Ok(())
    };
    let writing = async {
        let mut switches = shared.switches.subscribe();
        let mut before_cut: Option<usize> = None;
        while let Some((read_at, mut chunk)) = chunks.recv().await {
            let latency = way(*switches.borrow(), direction).latency;
            sleep_until(read_at + latency).await;
            while !chunk.is_empty() {
                let way = running(&mut switches, direction).await;
                if way.swallow {
                    break;
                }
                if direction == Direction::Down && before_cut.is_none() {
                    before_cut = shared.cut_answer_after.lock().unwrap().take();
                }
                let pace = way.drip.map_or(usize::MAX, |(bytes, _)| bytes);
                let length = chunk.len().min(pace).min(before_cut.unwrap_or(usize::MAX));
                to.write_all(&chunk[..length]).await.map_err(reset)?;
                chunk.drain(..length);
                shared.passed(direction).fetch_add(length as u64, Ordering::SeqCst);
                if let Some(left) = &mut before_cut {
                    *left -= length;
                    if *left == 0 {
                        return Err(End::Cut);
                    }
                }
                if let Some((_, interval)) = way.drip {
                    sleep(interval).await;
                }
            }
        }
        running(&mut switches, direction).await;
        to.shutdown().await.map_err(reset)
    };
    tokio::try_join!(reading, writing).map(|_| ())
}

fn reset(_: io::Error) -> End {
    End::Reset
}

/// Waits while the direction stalls; answers what is done to its bytes.
async fn running(switches: &mut watch::Receiver<Switches>, direction: Direction) -> Way {
    loop {
        let way = way(*switches.borrow_and_update(), direction);
        // Without the sender the proxy is gone, and this with it.
        if !way.stall || switches.changed().await.is_err() {
            return way;
        }
    }
}

fn way(switches: Switches, direction: Direction) -> Way {
    if direction == Direction::Up { switches.up } else { switches.down }
}

impl Shared {
    fn passed(&self, direction: Direction) -> &AtomicU64 {
        if direction == Direction::Up { &self.passed_up } else { &self.passed_down }
    }
}

const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_HELD_MAX: usize = 64;
/// Connections at a time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{TcpListener as StdListener, TcpStream as StdStream},
        thread,
    };

    use super::*;

    /// A server that answers each byte with itself, until its end.
    fn echo() -> SocketAddr {
        let listener = StdListener::bind((loopback(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn client(proxy: &FaultProxy) -> StdStream {
        let stream = StdStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    #[track_caller]
    fn exchange(stream: &mut StdStream, text: &[u8]) {
        stream.write_all(text).unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, text);
    }

    /// What arrives before nothing has come for a while.
    fn quiet(stream: &mut StdStream) -> Vec<u8> {
        stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let mut got = Vec::new();
        let error = stream.read_to_end(&mut got).expect_err("the connection ended");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        got
    }

    #[test]
    fn bytes_pass_and_ends_are_told() {
        let proxy = FaultProxy::start(echo());
        let mut many: Vec<StdStream> = (0..200).map(|_| client(&proxy)).collect();
        for stream in &mut many {
            exchange(stream, b"hello");
        }
        assert_eq!((proxy.accepted(), proxy.open()), (200, 200));
        // Bytes are counted when they have passed: the last ones may be at their reader before that.
        wait_until("all have passed", Duration::from_secs(10), || {
            (proxy.passed() == (1_000, 1_000)).then_some(())
        });
        many[0].shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(many[0].read(&mut [0; 8]).unwrap(), 0, "the server's end follows the client's");
        drop(many);
        wait_until("connections end", Duration::from_secs(10), || (proxy.open() == 0).then_some(()));
        let large = vec![7; 3_000_000];
        let mut stream = client(&proxy);
        let mut writing = stream.try_clone().unwrap();
        let sent = large.clone();
        let writer = thread::spawn(move || writing.write_all(&sent).unwrap());
        let mut answer = vec![0; large.len()];
        stream.read_exact(&mut answer).unwrap();
        writer.join().unwrap();
        assert!(answer == large, "a large answer arrives as it was sent");
    }

    #[test]
    fn latency_delays_and_does_not_add_up() {
        let proxy = FaultProxy::start(echo());
        let mut stream = client(&proxy);
        exchange(&mut stream, b"x");
        proxy.latency(Direction::Up, Duration::from_millis(100));
        proxy.latency(Direction::Down, Duration::from_millis(50));
        let began = Instant::now();
        exchange(&mut stream, &vec![1; 100_000]);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(150), "{took:?}");
        assert!(took < Duration::from_secs(5), "each piece waits for itself, not for those before: {took:?}");
        proxy.heal();
        exchange(&mut stream, b"y");
    }

    #[test]
    fn cut_is_an_orderly_end_and_reset_is_not() {
        let proxy = FaultProxy::start(echo());
        let mut stream = client(&proxy);
        exchange(&mut stream, b"x");
        proxy.cut();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        let mut stream = client(&proxy);
        exchange(&mut stream, b"x");
        proxy.reset();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        exchange(&mut client(&proxy), b"new connections are not meant");
    }

    #[test]
    fn refused_connections_fail_at_once_and_open_ones_go_on() {
        let proxy = FaultProxy::start(echo());
        let mut stream = client(&proxy);
        exchange(&mut stream, b"x");
        proxy.refuse(true);
        let error = StdStream::connect(proxy.address()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        exchange(&mut stream, b"still here");
        proxy.refuse(false);
        exchange(&mut client(&proxy), b"again");
        proxy.down();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(StdStream::connect(proxy.address()).is_err());
        proxy.heal();
        exchange(&mut client(&proxy), b"again");
    }

    #[test]
    fn a_stalled_direction_holds_back_and_a_swallowed_one_loses() {
        let proxy = FaultProxy::start(echo());
        let mut stream = client(&proxy);
        exchange(&mut stream, b"x");
        for direction in [Direction::Up, Direction::Down, Direction::Both] {
            proxy.stall(direction, true);
            stream.write_all(b"held").unwrap();
            assert_eq!(quiet(&mut stream), b"", "{direction:?}");
            proxy.stall(direction, false);
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"held", "{direction:?}");
        }
        proxy.swallow(Direction::Down, true);
        let (up, down) = proxy.passed();
        stream.write_all(b"lost").unwrap();
        assert_eq!(quiet(&mut stream), b"");
        assert_eq!(proxy.passed(), (up + 4, down), "the request arrived, its answer did not");
        proxy.heal();
        exchange(&mut stream, b"found");
        proxy.stall(Direction::Both, true);
        let mut fresh = client(&proxy);
        fresh.write_all(b"accepted").unwrap();
        assert_eq!(quiet(&mut fresh), b"", "accepted, and silent");
    }

    #[test]
    fn a_stalled_direction_holds_no_more_than_its_bound() {
        let proxy = FaultProxy::start(echo());
        let mut stream = client(&proxy);
        proxy.stall(Direction::Up, true);
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let chunk = vec![0; 1024 * 1024];
        let mut written = 0;
        while let Ok(count) = stream.write(&chunk) {
            written += count;
            assert!(written < 64 * 1024 * 1024, "the proxy goes on reading");
        }
    }

    #[test]
    fn a_drip_paces_either_direction() {
        let proxy = FaultProxy::start(echo());
        for direction in [Direction::Up, Direction::Down] {
            proxy.drip(direction, Some((2, Duration::from_millis(20))));
            let mut stream = client(&proxy);
            let began = Instant::now();
            exchange(&mut stream, b"0123456789");
            assert!(began.elapsed() >= Duration::from_millis(80), "{direction:?}: {:?}", began.elapsed());
            proxy.drip(direction, None);
            exchange(&mut stream, &vec![1; 10_000]);
        }
    }

    #[test]
    fn the_next_answer_is_cut_after_so_many_bytes_and_only_that_one() {
        let proxy = FaultProxy::start(echo());
        for bytes in [0, 1, 5, 9] {
            let (mut first, mut other) = (client(&proxy), client(&proxy));
            exchange(&mut other, b"before");
            proxy.cut_answer_after(bytes);
            first.write_all(b"0123456789").unwrap();
            let mut answer = Vec::new();
            first.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, &b"0123456789"[..bytes]);
            exchange(&mut other, b"after");
        }
    }

    #[test]
    fn a_dead_target_resets_and_another_can_take_its_place() {
        let nobody = SocketAddr::new(loopback(), 9);
        let proxy = FaultProxy::start(nobody);
        let mut stream = client(&proxy);
        assert!(stream.read(&mut [0; 8]).is_err());
        proxy.retarget(echo());
        exchange(&mut client(&proxy), b"there");
    }
}
