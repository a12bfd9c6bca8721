//! Reload in place: what changes, what stays open, and what is refused.

use std::net::TcpListener;
use std::time::Duration;

use rustix::process::Signal;

use super::load::{LONG, Load};
use super::{config, config_with};
use crate::support::server::Address;
use crate::support::{
    Client, End, PATIENCE, Setup, Tree, descriptors, memory, noise, on_both, wait_for, wait_until,
};

#[test]
fn two_hundred_reloads_under_load_lose_nothing() {
    const RELOADS: usize = 200;
    const IDLE: usize = 500;
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("long.bin", noise(LONG));
        let server = Setup::run(engine, &config(&tree, "epoch 0")).start();
        let (master, worker) = (server.pid(), server.worker());
        let mut idle: Vec<Client> = (0..IDLE).map(|_| server.connect()).collect();
        for client in &mut idle {
            assert_eq!(client.get("/ok").text(), "epoch 0");
        }
        let load = Load::start(server.address());
        let mut before = None;
        for reload in 1..=RELOADS {
            server.write_config(&config(&tree, &format!("epoch {reload}")));
            server.ask_must("reload");
            let mut client = server.connect();
            assert_eq!(client.get("/ok").text(), format!("epoch {reload}"));
            if reload == RELOADS / 4 {
                // What the first reloads allocate is no leak.
                before = Some((memory(master) + memory(worker), descriptors(worker)));
            }
        }
        assert!(load.is_whole());
        assert!(load.stop() > RELOADS as u64);
        assert_eq!(server.worker(), worker, "no worker was replaced");
        for client in &mut idle {
            assert_eq!(client.get("/ok").text(), "epoch 200", "it stayed open");
        }
        let (memory_before, descriptors_before) = before.expect("there were as many");
        let memory = memory(master) + memory(worker);
        let grown = memory.saturating_sub(memory_before);
        eprintln!("{engine:?}: {grown} B more after 150 further reloads");
        assert!(grown < 16 << 20, "{memory_before} B, then {memory} B");
        // The clients of the load are gone by now.
        let descriptors = descriptors(worker);
        assert!(
            descriptors <= descriptors_before,
            "{descriptors_before}, then {descriptors}"
        );
        let status = server.status();
        assert_eq!(status["epoch"], 1 + RELOADS);
        let epochs = &status["generations"][0]["workers"][0]["epochs"];
        assert_eq!(epochs.as_array().map(Vec::len), Some(1), "{epochs}");
    });
}

#[test]
fn a_request_in_flight_ends_as_it_began_and_the_next_one_is_new() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("old/long.bin", noise(16 << 20));
        tree.write("new/long.bin", "new");
        // Both beneath one parent, which the worker may read.
        let below = |name: &str| config(&tree, name).replace("/www\"", &format!("/www/{name}\""));
        let server = Setup::run(engine, &below("old")).start();
        let mut loading = server.download("/long.bin");
        server.write_config(&below("new"));
        server.must(&["reload"]);
        let status = server.status();
        let epochs = &status["generations"][0]["workers"][0]["epochs"];
        assert_eq!(
            epochs[1]["requests"], 1,
            "the old epoch is kept by one: {epochs}"
        );
        assert!(loading.response().body == noise(16 << 20), "it ended whole");
        assert_eq!(loading.get("/long.bin").text(), "new");
        wait_until("the old epoch is gone", PATIENCE, || {
            let status = server.status();
            let epochs = &status["generations"][0]["workers"][0]["epochs"];
            epochs.as_array().map(Vec::len) == Some(1)
        });
    });
}

#[test]
fn a_bad_configuration_is_refused_with_all_that_is_wrong_and_the_old_one_goes_on() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = Setup::run(engine, &config(&tree, "old")).start();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        let listen = |more: &str| {
            config(&tree, "new").replace("\"127.0.0.1:0\"", &format!("\"127.0.0.1:0\", {more}"))
        };
        for (text, told) in [
            ("[server\n".to_owned(), vec!["beltway.toml:1"]),
            (
                config_with(&tree, "new", "wrokers = 1\ndrain_timeout = 7"),
                vec!["`wrokers`", "drain_timeout"],
            ),
            (
                config(&tree, "new").replace("/www\"", "/missing\""),
                vec!["missing"],
            ),
            (
                listen(&format!("\"{taken}\", \"unix:/nonexistent/a.sock\"")),
                vec![taken.as_str(), "in use", "/nonexistent"],
            ),
            (
                config_with(&tree, "new", "user = \"nobody-of-this-name\""),
                vec!["nobody-of-this-name"],
            ),
        ] {
            server.write_config(&text);
            let output = server.control(&["reload"]);
            assert_eq!(output.code, Some(78), "{text}: {output:?}");
            for told in told {
                assert!(output.stderr.contains(told), "{told}: {output:?}");
            }
            assert_eq!(server.connect().get("/ok").text(), "old");
        }
        assert_eq!(server.status()["epoch"], 1);
        assert_eq!(server.status()["last_change"]["ok"], false);
        server.write_config(&config(&tree, "new"));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/ok").text(), "new");
    });
}

#[test]
fn a_new_listener_is_bound_and_a_removed_one_drains() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("long.bin", noise(16 << 20));
        let one = config_with(&tree, "one", "drain_timeout = \"20s\"");
        let other = one
            .replace("127.0.0.1:0", "127.0.0.2:0")
            .replace("one", "other");
        let server = Setup::run(engine, &one).start();
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "one");
        let mut loading = server.download("/long.bin");
        server.write_config(&other);
        server.must(&["reload"]);
        let addresses = wait_for("the new address is named", PATIENCE, || {
            let addresses = server.named_addresses();
            (addresses.len() == 2).then_some(addresses)
        });
        assert_eq!(Client::connect(&addresses[1]).get("/ok").text(), "other");
        wait_until("the old socket is closed", PATIENCE, || {
            let (domain, address) = server.address().socket();
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            socket.connect_timeout(&address, PATIENCE).is_err()
        });
        // An idle connection stays until it asks, is answered as before, and told to go.
        assert!(idle.is_open());
        let response = idle.get("/ok");
        assert_eq!((response.text(), response.closes()), ("one", true));
        assert_eq!(idle.end(), End::Closed);
        assert!(loading.response().body == noise(16 << 20));
        // It began before the drain, so it was not told to go: it does.
        drop(loading);
        wait_until("nothing of it is left", PATIENCE, || {
            let status = server.status();
            let listeners = status["generations"][0]["workers"][0]["listeners"].clone();
            listeners.as_array().map(Vec::len) == Some(1)
        });
    });
}

#[test]
fn what_is_left_of_a_removed_listener_ends_at_the_deadline() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("long.bin", noise(16 << 20));
        let one = config_with(&tree, "one", "drain_timeout = \"3s\"");
        let server = Setup::run(engine, &one).start();
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "one");
        let mut loading = server.download("/long.bin");
        server.write_config(&one.replace("127.0.0.1:0", "127.0.0.2:0"));
        server.must(&["reload"]);
        assert!(idle.is_silent_for(Duration::from_millis(100)));
        assert_eq!(idle.end(), End::Closed);
        loading
            .try_response()
            .expect_err("it is cut short, and shown so");
        let addresses = wait_for("the new address is named", PATIENCE, || {
            let addresses = server.named_addresses();
            (addresses.len() == 2).then_some(addresses)
        });
        assert_eq!(Client::connect(&addresses[1]).get("/ok").text(), "one");
    });
}

#[test]
fn what_can_not_change_in_place_is_a_new_generation_that_says_so() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = Setup::run(engine, &config(&tree, "old")).start();
        let old = server.worker();
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "old");
        server.write_config(&config_with(&tree, "new", "max_conns = 100"));
        let plan = server.must(&["plan"]);
        assert!(plan.stdout.contains("max_conns"), "{plan:?}");
        assert!(plan.stdout.contains("new generation"), "{plan:?}");
        let output = server.must(&["reload"]);
        assert!(output.stdout.contains("max_conns"), "why: {output:?}");
        assert_eq!(server.connect().get("/ok").text(), "new");
        let new = server.worker();
        assert_ne!(new, old);
        assert_eq!(server.workers("draining"), [old]);
        let status = server.must(&["status"]);
        assert!(
            status.stdout.contains("kept by   1 connection"),
            "{}",
            status.stdout
        );
        // The idle connection is answered by the old worker, and told to go.
        let response = idle.get("/ok");
        assert_eq!((response.text(), response.closes()), ("old", true));
        assert_eq!(idle.end(), End::Closed);
        wait_until("the old worker ends", PATIENCE, || {
            server.workers("draining").is_empty()
        });
    });
}

#[test]
fn plan_says_what_a_reload_would_change_and_whom_it_touches() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = Setup::run(engine, &config(&tree, "old")).start();
        assert!(
            server
                .must(&["plan"])
                .stdout
                .contains("nothing would change")
        );
        let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/ok").text(), "old");
        }
        server.write_config(&config(&tree, "new"));
        let plan = server.must(&["plan"]);
        assert!(plan.stdout.contains("\"=/ok\""), "{plan:?}");
        assert!(
            plan.stdout.contains("\"old\"") && plan.stdout.contains("\"new\""),
            "{plan:?}"
        );
        assert!(plan.stdout.contains("3 connections"), "{plan:?}");
        assert_eq!(
            server.connect().get("/ok").text(),
            "old",
            "it is only a plan"
        );
        server.write_config("[server\n");
        assert_eq!(server.control(&["plan"]).code, Some(78));
    });
}

#[test]
fn a_hangup_reloads_and_a_bad_file_is_told_in_the_log() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = Setup::run(engine, &config(&tree, "old")).start();
        server.write_config(&config(&tree, "new"));
        server.signal(Signal::HUP);
        wait_until("it reloads", PATIENCE, || {
            server.connect().get("/ok").text() == "new"
        });
        server.write_config(&config_with(&tree, "newer", "wrokers = 1"));
        server.signal(Signal::HUP);
        wait_until("it is told", PATIENCE, || {
            server.stderr().contains("wrokers")
        });
        assert_eq!(server.connect().get("/ok").text(), "new");
    });
}

#[test]
fn a_replaced_root_and_its_parent_are_served_after_a_reload() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "old")]);
        let server = Setup::run(engine, &config(&tree, "x")).start();
        assert_eq!(server.connect().get("/a.txt").text(), "old");
        // Within the parent, without a reload: `rm -rf dist && build`.
        std::fs::remove_dir_all(tree.root()).unwrap();
        tree.write("a.txt", "built again");
        wait_until("the new directory is seen", PATIENCE, || {
            let mut client = server.connect();
            let response = client.get("/a.txt");
            response.status == 200 && response.text() == "built again"
        });
        // The parent itself: a new generation, after a reload.
        let worker = server.worker();
        let aside = tree.outside().with_extension("aside");
        std::fs::rename(tree.outside(), &aside).unwrap();
        std::fs::create_dir(tree.outside()).unwrap();
        tree.write("a.txt", "elsewhere");
        server.must(&["reload"]);
        wait_until("the new parent is served", PATIENCE, || {
            let mut client = server.connect();
            let response = client.get("/a.txt");
            response.status == 200 && response.text() == "elsewhere"
        });
        assert_ne!(server.worker(), worker);
        std::fs::remove_dir_all(aside).unwrap();
    });
}

#[test]
fn a_unix_socket_stays_through_a_reload_and_goes_when_it_is_removed() {
    on_both(|engine| {
        let tree = Tree::new();
        let path = tree.outside().join("site.sock");
        let tcp = config(&tree, "x");
        let both = tcp.replace(
            "\"127.0.0.1:0\"",
            &format!("\"127.0.0.1:0\", \"unix:{}\"", path.display()),
        );
        let server = Setup::run(engine, &both).listeners(2).start();
        let unix = Address::Unix(path.clone());
        for _ in 0..2 {
            assert_eq!(Client::connect(&unix).get("/ok").text(), "x");
            server.must(&["reload"]);
        }
        server.write_config(&tcp);
        server.must(&["reload"]);
        wait_until("its file is gone", PATIENCE, || !path.exists());
        assert_eq!(server.connect().get("/ok").text(), "x");
    });
}
