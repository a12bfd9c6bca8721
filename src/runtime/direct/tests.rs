//! Fixed buffers, blocks and zero-copy sends, on real files and sockets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use crate::runtime;
use crate::runtime::buf::fixed::{FIXED_ALIGN, FIXED_BYTES};
use crate::runtime::engine::Engine;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::offload::Helpers;
use crate::runtime::op::{Op, Output, ZeroCopyLedger};

const PATIENCE: Duration = Duration::from_secs(10);

fn on_each_engine(test: impl Fn(&Core)) {
    let helpers = Helpers::start(2, 16).unwrap();
    runtime::on_each_engine(Some(&helpers), PATIENCE, |core| {
        core.allow_fixed(3, FIXED_BYTES);
        test(core);
    });
}

fn has_ring(core: &Core) -> bool {
    core.with_engine(|engine| matches!(engine, Engine::Ring(_)))
}

fn file(core: &Core, content: &[u8]) -> Fd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    core.own(file.into())
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) >> 3) as u8).collect()
}

#[test]
fn a_read_fills_its_part_of_the_buffer_and_an_error_gives_it_back() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move {
            let content = noise(3 * FIXED_ALIGN + 100);
            let opened = file(&inner, &content);
            let mut buffer = inner.fixed_buffer().unwrap();
            for (at, offset, filled) in [(0, 0, 4096), (4096, 8192, 8192), (8192, 12288, 8292)] {
                let read = Op::ReadFixed {
                    file: opened.clone(),
                    buffer,
                    at,
                    len: 4096,
                    offset,
                };
                let done = inner.once(read).await;
                assert_eq!(done.result, Ok((filled - at as usize) as u32));
                let Output::Fixed(back) = done.output else {
                    panic!("the buffer is lost")
                };
                assert_eq!(back.bytes().len(), filled);
                buffer = back;
            }
            assert_eq!(buffer.bytes()[..4096], content[..4096]);
            assert_eq!(buffer.bytes()[4096..], content[8192..]);
            let directory =
                rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
            let read = Op::ReadFixed {
                file: inner.own(directory.unwrap()),
                buffer,
                at: 0,
                len: 4096,
                offset: 0,
            };
            let failed = inner.once(read).await;
            assert_eq!(failed.result, Err(Errno::ISDIR));
            assert!(matches!(failed.output, Output::Fixed(_)));
        });
    });
}

#[test]
fn a_read_whose_future_is_dropped_keeps_its_buffer_until_it_ends() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move {
            let opened = file(&inner, &noise(FIXED_BYTES));
            let read = Op::ReadFixed {
                file: opened,
                buffer: inner.fixed_buffer().unwrap(),
                at: 0,
                len: FIXED_BYTES as u32,
                offset: 0,
            };
            drop(inner.once(read));
            assert_eq!(inner.fixed_usage(), (1, 1), "the slot holds it");
        });
    });
}

#[test]
fn blocks_are_read_once_and_stay_while_they_are_claimed() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move {
            let content = noise(4 * FIXED_BYTES - 5);
            let opened = file(&inner, &content);
            let stat = inner.stat(&opened).unwrap();
            let claim = |index: u64| {
                let want = FIXED_BYTES.min(content.len() - index as usize * FIXED_BYTES);
                inner.claim_block(&opened, stat, index, (want, FIXED_ALIGN))
            };
            let all: Vec<_> = (0..3).map(|index| claim(index).unwrap()).collect();
            assert!(claim(3).is_none(), "every buffer is claimed");
            for claim in &all {
                let bytes = std::future::poll_fn(|_| claim.poll()).await.unwrap();
                let start = claim.index as usize * FIXED_BYTES;
                assert!(*bytes.bytes() == content[start..start + FIXED_BYTES]);
            }
            drop(all);
            let again = claim(1).unwrap();
            assert!(again.poll().is_ready(), "it was kept");
            let last = claim(3).unwrap();
            let bytes = std::future::poll_fn(|_| last.poll()).await.unwrap();
            assert!(*bytes.bytes() == content[3 * FIXED_BYTES..]);
            assert!(claim(1).is_some_and(|it| it.poll().is_ready()));
            let counts = inner.direct_counts();
            assert_eq!(counts.read_bytes, content.len() as u64);
            assert_eq!((counts.shared, counts.no_room), (2, 1));
        });
    });
}

/// A connection, whose client reads nothing unless it is asked to.
fn pair(core: &Core) -> (Fd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    (core.own(OwnedFd::from(socket)), client)
}

/// Sends without a copy until the socket takes no more; gives what it took. `None` where there is no
/// such send.
async fn fill(core: &Core, socket: &Fd, ledger: &Rc<ZeroCopyLedger>) -> Option<usize> {
    let opened = file(core, &noise(FIXED_BYTES));
    let buffer = core.fixed_buffer().unwrap();
    let place = (0, FIXED_BYTES);
    let needed = (FIXED_BYTES, FIXED_ALIGN);
    let bytes = Rc::new(
        core.read_fixed(&opened, buffer, place, needed)
            .await
            .unwrap(),
    );
    let mut taken = 0;
    loop {
        let mut send = core.many(Op::SendZeroCopy {
            socket: Some(socket.clone()),
            bytes: Rc::clone(&bytes),
            range: (0, FIXED_BYTES as u32),
            more: false,
            ledger: Rc::clone(ledger),
        });
        match send.next().await.result {
            Ok(sent) => taken += sent as usize,
            Err(Errno::AGAIN) => return Some(taken),
            Err(errno) => {
                assert!(core.zero_copy_failed(errno), "{errno}");
                return None;
            }
        }
    }
}

async fn all_notified(core: &Core, ledger: &ZeroCopyLedger) {
    let mut timer = Timer::new(core);
    while ledger.awaited() > 0 {
        timer.set(core.now() + Duration::from_millis(2));
        timer.expired().await;
    }
}

#[test]
fn a_send_without_a_copy_is_whole_and_the_next_waits_for_no_notification() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move {
            let (socket, mut client) = pair(&inner);
            let ledger = Rc::<ZeroCopyLedger>::default();
            let Some(taken) = fill(&inner, &socket, &ledger).await else {
                assert!(!has_ring(&inner) || !inner.has_zero_copy());
                return;
            };
            assert!(ledger.awaited() > 0, "nobody has read anything");
            inner.shut_down_write(&socket);
            drop(socket);
            let content = noise(FIXED_BYTES);
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                client.read_to_end(&mut all).map(|_| all)
            });
            all_notified(&inner, &ledger).await;
            let all = reader.join().unwrap().unwrap();
            assert_eq!(all.len(), taken);
            assert!(all.starts_with(&content[..content.len().min(taken)]));
        });
    });
}

#[test]
fn a_connection_closes_although_its_client_holds_the_notification_back() {
    on_each_engine(|core| {
        let inner = core.clone();
        core.spawn(async move {
            let (socket, mut client) = pair(&inner);
            let ledger = Rc::<ZeroCopyLedger>::default();
            if fill(&inner, &socket, &ledger).await.is_none() {
                return;
            }
            assert!(ledger.awaited() > 0);
            inner.reset_on_close(&socket);
            drop(socket);
            all_notified(&inner, &ledger).await;
            let mut all = Vec::new();
            assert!(client.read_to_end(&mut all).is_err(), "it is a reset");
        });
    });
}
