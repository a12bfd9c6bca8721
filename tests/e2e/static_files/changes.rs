//! The server follows the file system: a change shows within a second, and nothing old comes after
//! the new.

use std::fs::{self, File};
use std::time::Duration;

use crate::support::server::serve;
use crate::support::{Client, Engine, Server, Setup, Tree, noise, on_both, wait_until};

/// A change shows within a second; a loaded machine gets ten times as long.
const SOON: Duration = Duration::from_secs(10);

/// Asks until the answer is `new`; until then it must be `old`, and from then on `new`.
#[track_caller]
fn turns(client: &mut Client, target: &str, old: (u16, &str), new: (u16, &str)) {
    let mut state = |what: &str| {
        let response = client.get(target);
        let text = match response.status {
            200 => response.text().to_owned(),
            _ => String::new(),
        };
        let found = (response.status, text.as_str());
        assert!(found == old || found == new, "{target} {what}: {found:?}");
        found == new
    };
    wait_until("the change shows", SOON, || state("turns"));
    for _ in 0..50 {
        assert!(state("has turned"), "{target}: {old:?} after {new:?}");
    }
}

#[test]
fn a_file_that_is_replaced_written_to_or_removed() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "one")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").text(), "one");
        let first = client.get("/a.txt").must("ETag").to_owned();
        tree.replace("a.txt", "two");
        turns(&mut client, "/a.txt", (200, "one"), (200, "two"));
        let response = client.get_with("/a.txt", &format!("If-None-Match: {first}\r\n"));
        assert_eq!(response.status, 200, "the tag changed with the content");
        tree.write("a.txt", "three, and longer");
        // Between truncating and writing the file is empty, and may be seen so.
        wait_until("the change shows", SOON, || {
            client.get("/a.txt").text() == "three, and longer"
        });
        tree.write("a.txt", "");
        turns(&mut client, "/a.txt", (200, "three, and longer"), (200, ""));
        fs::remove_file(tree.path("a.txt")).expect("remove");
        turns(&mut client, "/a.txt", (200, ""), (404, ""));
        tree.write("a.txt", "four");
        wait_until("the change shows", SOON, || {
            client.get("/a.txt").body == b"four"
        });
        fs::remove_file(tree.path("a.txt")).expect("remove");
        fs::create_dir(tree.path("a.txt")).expect("mkdir");
        tree.write("a.txt/index.html", "five");
        turns(&mut client, "/a.txt", (200, "four"), (301, ""));
        assert_eq!(client.get("/a.txt/").text(), "five");
    });
}

#[test]
fn files_that_appear_beside_what_is_served() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.js", "plain"), ("d/x", "x")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let mut coded = || {
            client
                .get_with("/a.js", "Accept-Encoding: gzip\r\n")
                .text()
                .to_owned()
        };
        assert_eq!(coded(), "plain");
        tree.write("a.js.gz", "gzip");
        wait_until("the sidecar shows", SOON, || coded() == "gzip");
        fs::remove_file(tree.path("a.js.gz")).expect("remove");
        wait_until("the sidecar is gone", SOON, || coded() == "plain");
        assert!(client.get("/d/").text().contains("href"));
        tree.write("d/index.html", "index");
        wait_until("the index shows", SOON, || {
            client.get("/d/").text() == "index"
        });
    });
}

#[test]
fn a_directory_that_is_renamed() {
    on_both(|engine| {
        let tree = Tree::with(&[("a/x.txt", "in a"), ("b/x.txt", "in b")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        assert_eq!(client.get("/a/x.txt").text(), "in a");
        assert_eq!(client.get("/b/x.txt").text(), "in b");
        fs::rename(tree.path("a"), tree.path("c")).expect("rename");
        turns(&mut client, "/a/x.txt", (200, "in a"), (404, ""));
        assert_eq!(client.get("/c/x.txt").text(), "in a");
        fs::rename(tree.path("b"), tree.path("a")).expect("rename");
        turns(&mut client, "/b/x.txt", (200, "in b"), (404, ""));
        wait_until("the other shows", SOON, || {
            client.get("/a/x.txt").body == b"in b"
        });
    });
}

#[test]
fn a_current_link_that_is_switched() {
    on_both(|engine| {
        let tree = Tree::new();
        let releases = tree.outside().join("releases");
        for release in ["1", "2"] {
            let directory = releases.join(release);
            fs::create_dir_all(directory.join("d")).expect("mkdir");
            fs::write(directory.join("a.txt"), format!("release {release}")).expect("write");
            fs::write(directory.join("d/b.txt"), format!("deep {release}")).expect("write");
        }
        let current = tree.outside().join("current");
        let switch = |release: &str| {
            let new = tree.outside().join("new-link");
            std::os::unix::fs::symlink(releases.join(release), &new).expect("symlink");
            fs::rename(&new, &current).expect("rename");
        };
        switch("1");
        let server = Setup::serve(engine, &current).start();
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").text(), "release 1");
        assert_eq!(client.get("/d/b.txt").text(), "deep 1");
        switch("2");
        turns(
            &mut client,
            "/a.txt",
            (200, "release 1"),
            (200, "release 2"),
        );
        turns(&mut client, "/d/b.txt", (200, "deep 1"), (200, "deep 2"));
        // The root removed and made again, as deployments by copying do.
        fs::remove_dir_all(releases.join("2")).expect("remove");
        turns(&mut client, "/a.txt", (200, "release 2"), (404, ""));
        fs::create_dir_all(releases.join("2")).expect("mkdir");
        fs::write(releases.join("2/a.txt"), "release 3").expect("write");
        wait_until("the new root shows", SOON, || {
            client.get("/a.txt").body == b"release 3"
        });
    });
}

#[test]
fn a_file_that_changes_between_equally_long_contents() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "0000")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let mut tags = std::collections::HashMap::new();
        for number in 0..5 {
            let content = format!("{number:04}");
            tree.replace("a.txt", &content);
            wait_until("the change shows", SOON, || {
                let response = client.get("/a.txt");
                if let Some(tag) = response.field("ETag") {
                    let text = response.text().to_owned();
                    let before = tags.insert(tag.to_owned(), text.clone());
                    assert!(
                        before.is_none_or(|before| before == text),
                        "one tag, two contents"
                    );
                }
                response.text() == content
            });
        }
    });
}

/// A download of which the server can send only a part before its client reads on.
fn stalled_download(server: &Server, target: &str) -> Client {
    let mut client = Client::connect_with(server.address(), |socket| {
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
    });
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.await_bytes(1);
    client
}

fn large(engine: Engine) -> (Tree, Server) {
    let tree = Tree::with(&[("a.txt", "hello")]);
    tree.write("large.bin", noise(32 << 20));
    let server = serve(engine, &tree, &[]);
    (tree, server)
}

#[test]
fn a_file_truncated_while_it_is_sent_ends_only_that_connection() {
    on_both(|engine| {
        let (tree, mut server) = large(engine);
        let mut watcher = server.connect();
        assert_eq!(watcher.get("/a.txt").text(), "hello");
        let mut client = stalled_download(&server, "/large.bin");
        let file = File::options()
            .write(true)
            .open(tree.path("large.bin"))
            .expect("open");
        file.set_len(1000).expect("truncate");
        let error = client.try_response().expect_err("it was cut short");
        assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "it must end");
        assert_eq!(watcher.get("/a.txt").text(), "hello");
        assert!(server.ended().is_none());
        wait_until("the new size shows", SOON, || {
            watcher
                .try_response_to("GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n")
                .map_or_else(
                    |_| {
                        watcher = server.connect();
                        false
                    },
                    |response| response.body.len() == 1000,
                )
        });
    });
}

#[test]
fn a_file_replaced_or_removed_while_it_is_sent_arrives_as_it_was() {
    on_both(|engine| {
        for remove in [false, true] {
            let (tree, server) = large(engine);
            let mut client = stalled_download(&server, "/large.bin");
            if remove {
                fs::remove_file(tree.path("large.bin")).expect("remove");
            } else {
                tree.replace("large.bin", vec![0; 32 << 20]);
            }
            let response = client.response();
            assert!(response.body == noise(32 << 20), "mixed content");
        }
    });
}
