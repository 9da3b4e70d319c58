//! A server on loopback: a thread for each connection, and an end that comes at once.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, shutdown, socket_with,
    sockopt::set_socket_reuseaddr,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::exchange::exchange;
use super::http::{Connection, Stream};
use super::state::{Host, State, lock};

/// A client that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(120);

/// One listening address with its connections.
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
    /// Bound and never listening: the port stays ours while the server is down.
    _holder: OwnedFd,
}

struct Running {
    listener: Arc<TcpListener>,
    thread: JoinHandle<()>,
}

struct Shared {
    host: Host,
    state: Arc<State>,
    tls: Option<Arc<ServerConfig>>,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    next: u64,
    sockets: BTreeMap<u64, TcpStream>,
}

impl Server {
    /// Starts on a port that the system chooses.
    pub fn start(host: Host, state: Arc<State>, tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        let holder = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = SocketAddr::try_from(getsockname(&holder)?).context("no address")?;
        let server = Self {
            address,
            shared: Arc::new(Shared {
                host,
                state,
                tls,
                live: Mutex::default(),
            }),
            running: Mutex::new(None),
            _holder: holder,
        };
        server.up()?;
        Ok(server)
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Takes connections (again).
    pub fn up(&self) -> Result<()> {
        let mut running = lock(&self.running);
        if running.is_some() {
            return Ok(());
        }
        let socket = bound(self.address)?;
        listen(&socket, 128).context("cannot listen")?;
        let listener = Arc::new(TcpListener::from(socket));
        let (accepting, shared) = (Arc::clone(&listener), Arc::clone(&self.shared));
        let thread = std::thread::Builder::new()
            .name(format!("{:?} server", self.shared.host))
            .spawn(move || accept(&accepting, &shared))?;
        *running = Some(Running { listener, thread });
        Ok(())
    }

    /// Takes no connections and ends those there are, in the middle of whatever they do.
    pub fn down(&self) -> Result<()> {
        let Some(Running { listener, thread }) = lock(&self.running).take() else {
            return Ok(());
        };
        shutdown(&*listener, rustix::net::Shutdown::Both).context("cannot stop to listen")?;
        drop(listener);
        if thread.join().is_err() {
            bail!("the accepting thread panicked");
        }
        for socket in lock(&self.shared.live).sockets.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let started = Instant::now();
        while !lock(&self.shared.live).sockets.is_empty() {
            if started.elapsed() > Duration::from_secs(20) {
                bail!("connections do not end");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.down();
    }
}

fn bound(address: SocketAddr) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address).with_context(|| format!("cannot bind {address}"))?;
    Ok(socket)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept() {
        let Ok(kept) = socket.try_clone() else {
            continue;
        };
        let number = {
            let mut live = lock(&shared.live);
            live.next += 1;
            let number = live.next;
            live.sockets.insert(number, kept);
            number
        };
        let serving = Gone {
            shared: Arc::clone(shared),
            number,
        };
        shared.state.connections.up();
        let _ = std::thread::Builder::new().spawn(move || {
            let _ = serve(&serving.shared, socket);
        });
    }
}

/// Takes a connection off the list when its thread ends, by whatever way.
struct Gone {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.shared.state.connections.down();
        if let Some(socket) = lock(&self.shared.live).sockets.remove(&self.number) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Whether a client begins with the handshake of TLS.
fn is_tls(socket: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0];
    Ok(socket.peek(&mut first)? == 1 && first == [0x16])
}

/// Says at once that there is no TLS here, as servers do that are written in Go.
fn refuse_tls(mut socket: TcpStream) -> std::io::Result<()> {
    let answer =
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    socket.write_all(answer)
}

fn serve(shared: &Shared, socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))?;
    let plain = socket.try_clone()?;
    let stream: Box<dyn Stream> = match &shared.tls {
        None => {
            if is_tls(&socket)? {
                return refuse_tls(plain);
            }
            Box::new(plain)
        }
        Some(config) => {
            let tls = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
            Box::new(StreamOwned::new(tls, plain))
        }
    };
    let mut connection = Connection::new(stream, socket);
    while exchange(&shared.state, shared.host, &mut connection)? {}
    Ok(())
}
