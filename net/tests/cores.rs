//! Cores, mailboxes, sockets and the stop, all together: started and stopped again and again, with nothing left.
//!
//! One test in this file, because it counts the file descriptors of its process.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _,
    future::{Either, select},
};
use milena_net::{
    cores::{self, Cores, CoresConfig},
    mesh::{self, Receiver, Sender},
    shutdown::{Participant, Reason, Shutdown, Stage, StageLimits},
    tcp::{self, Listener},
};

const CORES: usize = 2;
const ROUND_TRIPS: u32 = 300;
const CLIENTS: usize = 8;

const LONG: Duration = Duration::from_secs(600);
const PATIENT: StageLimits =
    StageLimits { settle: LONG, leave: LONG, refuse: LONG, drain: LONG, seal: LONG, part: LONG };

/// What a core is given when it starts.
struct Core {
    listener: Listener,
    inbox: Receiver<u32>,
    other: Sender<u32>,
    begins: bool,
    participant: Participant,
}

/// What it leaves.
#[derive(Debug, PartialEq, Eq)]
struct Served {
    pings: u32,
    echoed_bytes: usize,
}

impl Core {
    async fn run(self) -> Served {
        let Self { listener, inbox, other, begins, mut participant } = self;
        let player = glommio::spawn_local(play(inbox, other, begins));
        let mut echoes = Vec::new();
        {
            // The listener lives until the stage that refuses.
            let mut listener = listener;
            let mut refuse = pin!(until(&mut participant, Stage::Refuse));
            while let Either::Left((accepted, _)) = select(pin!(listener.accept()), refuse.as_mut()).await {
                echoes.push(glommio::spawn_local(echo(accepted.unwrap().0)));
            }
        }
        participant.done(Stage::Refuse);
        until(&mut participant, Stage::Drain).await;
        let mut echoed_bytes = 0;
        for echo in echoes {
            echoed_bytes += echo.await;
        }
        participant.done(Stage::Drain);
        until(&mut participant, Stage::Part).await;
        Served { pings: player.await, echoed_bytes }
    }
}

async fn until(participant: &mut Participant, last: Stage) {
    while let Some(stage) = participant.next().await {
        if stage == last {
            return;
        }
        participant.done(stage);
    }
    unreachable!("every stage comes");
}

/// Sends each number back, one higher, until it is high enough or the other has gone.
async fn play(mut inbox: Receiver<u32>, other: Sender<u32>, begins: bool) -> u32 {
    if begins {
        other.try_send(0).unwrap();
    }
    let mut pings = 0;
    while let Some(number) = inbox.recv().await {
        pings += 1;
        if number == 2 * ROUND_TRIPS {
            break;
        }
        if other.try_send(number + 1).is_err() {
            break;
        }
    }
    pings
}

async fn echo(mut stream: glommio::net::TcpStream) -> usize {
    let (mut buffer, mut echoed_bytes) = ([0; 4096], 0);
    loop {
        let bytes = stream.read(&mut buffer).await.unwrap();
        if bytes == 0 {
            return echoed_bytes;
        }
        stream.write_all(&buffer[..bytes]).await.unwrap();
        echoed_bytes += bytes;
    }
}

fn client(address: SocketAddr, number: usize) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    let sent = vec![number as u8; 10_000 * (number + 1)];
    let mut seen = vec![0; sent.len()];
    for (chunk, answer) in sent.chunks(5_000).zip(seen.chunks_mut(5_000)) {
        stream.write_all(chunk).unwrap();
        stream.read_exact(answer).unwrap();
    }
    assert!(sent == seen, "client {number}");
    sent.len()
}

fn start_and_stop() {
    let shutdown = Shutdown::new(PATIENT).unwrap();
    let mut listeners = tcp::listen_on_all((Ipv4Addr::LOCALHOST, 0).into(), CORES).unwrap().into_iter();
    let address = listeners.as_slice()[0].local_addr();
    let (to_first, first) = mesh::mailbox(1);
    let (to_second, second) = mesh::mailbox(1);
    let mut mailboxes = [(first, to_second, true), (second, to_first, false)].into_iter();

    let cores = Cores::start(CoresConfig::new(CORES), |index| {
        let (inbox, other, begins) = mailboxes.next().unwrap();
        let participant = shutdown.join_in(format!("core {index}"));
        let core = Core { listener: listeners.next().unwrap(), inbox, other, begins, participant };
        move || core.run()
    })
    .unwrap();

    let clients: Vec<_> = (0..CLIENTS).map(|number| thread::spawn(move || client(address, number))).collect();
    let sent_bytes: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    shutdown.begin(Reason::Asked("the test is over"));

    let served = cores.join();
    let outcome = shutdown.wait();
    assert_eq!(outcome.exit_code(), 0, "{outcome}");
    assert_eq!(served.iter().map(|core| core.echoed_bytes).sum::<usize>(), sent_bytes);
    assert_eq!(served.iter().map(|core| core.pings).collect::<Vec<_>>(), [ROUND_TRIPS, ROUND_TRIPS + 1]);
    TcpStream::connect(address).unwrap_err();
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn two_cores_serve_and_stop_and_leave_no_descriptor() {
    cores::probe().unwrap();
    start_and_stop(); // what is made once stays: the runtime's, the standard library's
    let before = open_fds();
    for _ in 0..5 {
        start_and_stop();
    }
    // Each runtime has a thread for blocking calls that ends by itself soon after.
    let patience = Instant::now() + Duration::from_secs(60);
    while open_fds() > before {
        assert!(Instant::now() < patience, "{before} descriptors before, {} after", open_fds());
        thread::yield_now();
    }
}
