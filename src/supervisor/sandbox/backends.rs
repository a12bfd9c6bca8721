//! That a worker in its sandbox finds its backends and connects to them, and that nothing of this is
//! refused: what is refused would be counted and logged at each lookup.

use std::cell::Cell;
use std::fs;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{State, grants, restrict_calls, restrict_files};
use crate::config::model::Family;
use crate::config::{self, sources::Input};
use crate::net::connect::connect;
use crate::net::run;
use crate::runtime::address::Address;
use crate::runtime::engine::caps::{EngineChoice, Selection};
use crate::runtime::executor::Core;
use crate::runtime::mailbox::Wake;
use crate::supervisor::alone::{alone, skip};
use crate::upstream::resolve::{
    NameServer, Resolver, Transport, answer, client, lookup, servers, settings,
};
use crate::upstream::roster::Rosters;

const PATIENCE: Duration = Duration::from_secs(20);

/// Connects on a core to this address, and ends its tasks.
fn connects(core: &Core, address: &Address) -> bool {
    let well = Rc::new(Cell::new(false));
    let (doing, to, told) = (core.clone(), address.clone(), Rc::clone(&well));
    core.spawn(async move {
        let connected = connect(&doing, &to, PATIENCE).await;
        told.set(connected.is_ok());
        if let Err(error) = connected {
            eprintln!("{to:?}: {error}");
        }
    });
    run(core);
    well.get()
}

#[test]
fn a_confined_worker_finds_its_backends() {
    alone(
        module_path!(),
        "a_confined_worker_finds_its_backends",
        |directory| {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let at = tcp.local_addr().unwrap();
            let path = directory.join("app.sock");
            let _unix = UnixListener::bind(&path).unwrap();
            let dns = NameServer::start(|query, transport| match transport {
                Transport::Udp => vec![answer(query, |it| {
                    it.set_flags(simple_dns::PacketFlag::TRUNCATION);
                })],
                Transport::Tcp => vec![servers(query, &[(1, 1, 80, "n1.example", 60)])],
            });
            let text = format!(
                "[upstream.app]\nservers = [\"localhost:{}\"]\nresolve = {{ family = \"ipv4\" }}\n\
                 [site.\":8080\"]\nproxy = \"app\"\n",
                at.port()
            );
            fs::write(directory.join("beltway.toml"), text).unwrap();
            let input = Input {
                file: Some(directory.join("beltway.toml")),
                directory: directory.to_owned(),
                ..Input::default()
            };
            let model = config::load(&input).unwrap().model;
            let granted = grants(&model, &[], &[]);
            if let State::Missing(why) = restrict_files(&granted) {
                return skip(&why);
            }
            let choices = [EngineChoice::Uring, EngineChoice::Epoll];
            let selections = choices.map(Selection::choose).into_iter().flatten();
            let cores: Vec<Core> = selections
                .map(|it| it.core(Wake::new().unwrap(), None).unwrap())
                .collect();
            let (State::Enforced(_), Some(notifier)) = restrict_calls(false) else {
                return skip("refusals are not counted here");
            };
            let rosters = Rosters::new(&model.upstreams, Instant::now());
            let resolver = Resolver::start(&rosters).unwrap();
            assert!(resolver.first_answers(PATIENCE));
            let members = rosters.list()[0].members();
            let address = members.list[0].address.clone().expect("it is resolved");
            assert_eq!(address, Address::from(at));
            // Several addresses are sorted by those of this machine.
            assert!(("localhost", 1).to_socket_addrs().unwrap().count() > 0);
            let deadline = Instant::now() + PATIENCE;
            let services = client::ask(&settings(&[&dns]), "_http._tcp.app", deadline).unwrap();
            let none = |_: &str, _| unreachable!("the answer has the address");
            let found = lookup::servers(&services, Family::Any, deadline, none).unwrap();
            assert_eq!(found.addresses[0].address.to_string(), "10.0.0.1:80");
            for core in &cores {
                assert!(connects(core, &address));
                assert!(connects(core, &Address::from(path.as_path())));
                assert!(core.shut_down());
            }
            assert_eq!(
                tcp.incoming().take(cores.len()).flatten().count(),
                cores.len()
            );
            for grant in &granted.read {
                let readable = match grant.path.is_dir() {
                    true => fs::read_dir(&grant.path).map(drop),
                    false => fs::read(&grant.path).map(drop),
                };
                assert!(readable.is_ok(), "{grant:?}: {readable:?}");
            }
            assert_eq!(notifier.by_call(), [], "nothing of it is refused");
        },
    );
}
