//! The toggles of I/O: each works on both engines, or is refused with a reason.

use std::fs;

use rustix::process::Signal;

use crate::supervise::load::{LONG, Load};
use crate::supervise::{config, config_with};
use crate::support::child::Before;
use crate::support::{
    Client, Engine, PATIENCE, Server, Setup, Tree, noise, on_both, uring_missing, wait_for,
    wait_until,
};

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).expect("the kernel tells it");
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// The threads of a process whose names begin so: the CPUs that each may use, as the kernel lists them.
fn allowed(pid: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = tasks.flatten().filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        status
            .starts_with(&format!("Name:\t{name}"))
            .then_some(status)
    });
    let list = |status: String| {
        let mut lines = status.lines();
        let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        list.expect("the kernel tells it").trim().to_owned()
    };
    status.map(list).collect()
}

/// Small and large answers, one after the other, together, and on many connections.
fn serves(server: &Server) {
    let mut client = server.connect();
    for _ in 0..20 {
        assert_eq!(client.get("/ok").text(), "ok");
    }
    let one = "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(one.repeat(50));
    for _ in 0..50 {
        assert_eq!(client.response().text(), "ok");
    }
    assert!(client.get("/long.bin").body == noise(LONG));
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(one);
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
}

fn tree() -> Tree {
    let tree = Tree::new();
    tree.write("long.bin", noise(LONG));
    tree
}

#[test]
fn threads_stay_on_one_cpu_or_may_move() {
    let all = cpus();
    on_both(|engine| {
        let tree = tree();
        let start = |pin: &str| {
            let text = config_with(&tree, "ok", &format!("pin = {pin}"));
            Setup::run(engine, &text).start()
        };
        let pinned = start("true");
        let places = allowed(pinned.worker(), "beltway-core");
        let place: usize = places[0].parse().expect("one CPU");
        assert!(all.contains(&place), "{places:?}");
        serves(&pinned);
        let status = pinned.status();
        let tuning = status["generations"][0]["workers"][0]["tuning"].as_str();
        assert!(tuning.is_some_and(|it| !it.is_empty()), "{status}");
        let unpinned = start("false");
        let places = allowed(unpinned.worker(), "beltway-core");
        assert_eq!(
            places[0],
            allowed(unpinned.pid(), "beltway")[0],
            "as it was started"
        );
        serves(&unpinned);
    });
}

#[test]
fn a_poller_submits_on_a_cpu_of_its_own() {
    if let Some(why) = uring_missing() {
        return crate::support::skipped(format_args!("there is no io_uring: {why}"));
    }
    if cpus().len() < 2 {
        return crate::support::skipped("a poller needs a second CPU, and there is one");
    }
    let tree = tree();
    let text = config_with(&tree, "ok", "sqpoll = true");
    let mut server = Setup::run(Engine::Uring, &text).start();
    let worker = server.worker();
    // The kernel names it after the process that made the ring.
    let cores = allowed(worker, "beltway-core");
    // Those of rings that were tried at the start end by and by.
    let pollers = wait_for("there is one poller", PATIENCE, || {
        let pollers = allowed(worker, "iou-sqp");
        (pollers.len() == 1).then_some(pollers)
    });
    assert_eq!(cores.len(), 1, "{cores:?}");
    assert_ne!(cores, pollers, "each has its own CPU");
    assert!(server.stderr().contains("pollers"), "it is told");
    serves(&server);
    // Long enough for the poller to sleep; then it has to be woken.
    for pause_ms in [0, 30, 60] {
        std::thread::park_timeout(std::time::Duration::from_millis(pause_ms));
        assert_eq!(server.connect().get("/ok").text(), "ok");
    }
    let load = Load::start(server.address());
    server.must(&["reload"]);
    assert!(load.is_whole());
    load.stop();
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_poller_is_refused_where_there_is_no_cpu_or_no_ring_for_it() {
    let tree = tree();
    let setup = || Setup::serve(Engine::Uring, tree.root()).engine_auto();
    let one = Before {
        cpu: cpus().first().copied(),
        ..Before::default()
    };
    let output = setup().arguments(&["--sqpoll"]).before(one).fail();
    assert_eq!(output.code, Some(1));
    for told in [
        "sqpoll takes two CPUs for each thread",
        "1 CPU",
        "remove `sqpoll`",
    ] {
        assert!(output.stderr.contains(told), "{}", output.stderr);
    }
    for (other, told) in [
        ("--engine=epoll", "`engine` is \"epoll\""),
        ("--no-pin", "`pin` is false"),
        ("--set=server.processes=2", "`processes` is more than 1"),
    ] {
        let output = setup().arguments(&["--sqpoll", other]).fail();
        assert_eq!(output.code, Some(78), "{}", output.stderr);
        assert!(output.stderr.contains(told), "{}", output.stderr);
    }
}

/// Connections of each core, as the server tells.
fn spread(server: &Server) -> Vec<u64> {
    let status = server.status();
    let cores = status["generations"][0]["workers"][0]["cores"].as_array();
    let cores = cores.expect("a list").iter();
    cores
        .map(|core| core["connections"].as_u64().expect("a number"))
        .collect()
}

/// Opens connections, and gives how many each core got.
fn herd(server: &Server, connections: usize) -> (Vec<Client>, Vec<u64>) {
    let mut clients: Vec<Client> = (0..connections).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/ok").text(), "ok");
    }
    let spread = spread(server);
    eprintln!("{connections} connections: {spread:?}");
    assert_eq!(spread.iter().sum::<u64>(), connections as u64);
    (clients, spread)
}

#[test]
fn each_core_has_a_socket_and_an_address_in_use_is_still_told() {
    on_both(|engine| {
        let tree = tree();
        let text = config_with(&tree, "ok", "reuseport = true");
        let server = Setup::run(engine, &text).workers(2).start();
        assert_eq!(
            server.status()["listeners"].as_array().map(Vec::len),
            Some(1)
        );
        serves(&server);
        let (_clients, spread) = herd(&server, 200);
        assert!(spread.iter().all(|it| *it >= 40), "{spread:?}");
        // Another one of our own, with and without sockets for each core.
        let crate::support::server::Address::Tcp(address) = server.address() else {
            panic!("it listens on TCP");
        };
        for reuseport in ["reuseport = true", ""] {
            let text = config_with(&tree, "ok", reuseport);
            let text = text.replace("127.0.0.1:0", &address.to_string());
            let output = Setup::run(engine, &text).workers(2).fail();
            assert_eq!(output.code, Some(1));
            assert!(output.stderr.contains("in use"), "{}", output.stderr);
        }
        // And without a master.
        let alone = Setup::serve(engine, tree.root())
            .arguments(&["--reuseport"])
            .workers(2)
            .start();
        let got = alone.connect().get("/long.bin");
        assert!(got.body == noise(LONG));
    });
}

#[test]
fn sockets_of_cores_lose_nothing_through_reload_respawn_and_upgrade() {
    on_both(|engine| {
        let tree = tree();
        let text = |workers: usize| {
            config_with(
                &tree,
                "ok",
                &format!("reuseport = true\nworkers = {workers}"),
            )
        };
        let mut setup = Setup::run(engine, &text(2));
        setup = setup.workers_of_the_file();
        let server = setup.start();
        let load = Load::start(server.address());
        // More cores than sockets, and fewer.
        for workers in [3, 1, 2] {
            server.write_config(&text(workers));
            server.must(&["reload"]);
            for _ in 0..30 {
                assert_eq!(server.connect().get("/ok").text(), "ok");
            }
            assert_eq!(spread(&server).len(), workers);
        }
        assert!(server.stderr().contains("keeps the number of its sockets"));
        server.must(&["upgrade"]);
        assert!(load.is_whole());
        load.stop();
        wait_until("the load has gone", PATIENCE, || {
            spread(&server).iter().sum::<u64>() == 0
        });
        let (clients, each) = herd(&server, 200);
        assert!(each.iter().all(|it| *it >= 40), "{each:?}");
        drop(clients);
        // What waits at a worker that dies is served by the next one, at each of the sockets.
        let worker = server.worker();
        crate::supervise::respawn::stop(worker);
        let mut waiting: Vec<Client> = (0..50).map(|_| server.connect()).collect();
        for client in &mut waiting {
            client.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        crate::supervise::respawn::kill(worker);
        for client in &mut waiting {
            assert_eq!(client.response().text(), "ok", "it waited in the backlog");
        }
        wait_until("it is told", PATIENCE, || server.status()["restarts"] == 1);
    });
}

#[test]
fn threads_that_share_a_socket_share_the_connections() {
    on_both(|engine| {
        let tree = tree();
        let server = Setup::run(engine, &config(&tree, "ok")).workers(2).start();
        for connections in [64, 1024] {
            let (clients, spread) = herd(&server, connections);
            let least = connections as u64 / 5;
            assert!(spread.iter().all(|it| *it >= least), "{spread:?}");
            drop(clients);
            wait_until("they are gone", PATIENCE, || {
                self::spread(&server).iter().sum::<u64>() == 0
            });
        }
    });
}
