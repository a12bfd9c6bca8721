//! Nothing outside the root, nothing hidden, and nothing but regular files is served.

use std::fs;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mkfifoat, mknodat};

use crate::support::server::serve;
use crate::support::{Tree, on_both};

const SECRET: &str = "outside of the root";

#[test]
fn no_spelling_leaves_the_root() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello"), ("d/b.txt", "b")]);
        fs::write(tree.outside().join("secret.txt"), SECRET).expect("the secret");
        let server = serve(engine, &tree, &["--hidden-files"]);
        let up = [
            "..",
            "%2e%2e",
            "%2E%2E",
            ".%2e",
            "%2e.",
            "%252e%252e",
            "..%00",
            "..;",
            "..%5c",
            "..\\",
            "%c0%ae%c0%ae",
            "%e0%80%ae%e0%80%ae",
            "%uff0e%uff0e",
            "\u{ff0e}\u{ff0e}",
            "...",
            "....",
            "%2e%2e%2f",
            "..%2f",
            "..%252f",
            "..%c0%af",
            "%00..",
            "..%0d",
            "..%20",
            "..%09",
        ];
        for up in up {
            for target in [
                format!("/{up}/secret.txt"),
                format!("/d/{up}/{up}/secret.txt"),
                format!("/d/{up}/{up}/{up}/{up}/{up}/{up}/{up}/{up}/etc/passwd"),
                format!("/{up}{up}secret.txt"),
                format!("//{up}/secret.txt"),
                format!("/./{up}/secret.txt"),
                format!("/a.txt/{up}/{up}/secret.txt"),
                format!("{up}/secret.txt"),
                format!("http://a/{up}/secret.txt"),
            ] {
                let mut client = server.connect();
                client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
                let response = client.response();
                assert!(
                    [400, 403, 404].contains(&response.status),
                    "{target}: {}",
                    response.status
                );
                let text = response.text();
                assert!(
                    !text.contains(SECRET) && !text.contains("root:"),
                    "{target}"
                );
            }
        }
        for target in [
            "/etc/passwd",
            "//etc/passwd",
            "/%2fetc/passwd",
            "/d%2fb.txt",
            "/d%5cb.txt",
            "/d\\b.txt",
            "/a.txt%00",
            "/a.txt%00.html",
            "/file:///etc/passwd",
            "/proc/self/environ",
            "/C:/secret.txt",
        ] {
            let response = server.connect().get(target);
            assert!([400, 403, 404].contains(&response.status), "{target}");
        }
        let mut client = server.connect();
        assert_eq!(client.get("/d/../a.txt").text(), "hello");
        assert_eq!(client.get("/d/%2e%2e/a.txt").text(), "hello");
    });
}

#[test]
fn links_are_followed_beneath_the_root_only() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello"), ("d/b.txt", "b")]);
        let secret = tree.outside().join("secret.txt");
        fs::write(&secret, SECRET).expect("the secret");
        fs::create_dir(tree.outside().join("www2")).expect("a sibling");
        fs::write(tree.outside().join("www2/x.txt"), SECRET).expect("the secret");
        tree.link("inside", "a.txt");
        tree.link("d/up", "../a.txt");
        tree.link("dir", "d");
        tree.link("chain", "inside");
        tree.link("absolute", tree.path("a.txt"));
        tree.link("absolute-dir", tree.path("d"));
        tree.link("absolute-out", &secret);
        tree.link("out", "../secret.txt");
        tree.link("out-dir", "..");
        tree.link("through", "../www/a.txt");
        tree.link("sibling", tree.outside().join("www2"));
        tree.link("loop", "loop");
        tree.link("dangling", "nothing");
        tree.link("chain-out", "out");
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for (target, content) in [
            ("/inside", "hello"),
            ("/d/up", "hello"),
            ("/dir/b.txt", "b"),
            ("/dir/up", "hello"),
            ("/chain", "hello"),
            ("/absolute", "hello"),
            ("/absolute-dir/b.txt", "b"),
        ] {
            assert_eq!(client.get(target).text(), content, "{target}");
        }
        for target in [
            "/out",
            "/absolute-out",
            "/out-dir/secret.txt",
            "/out-dir/",
            "/sibling/x.txt",
            "/loop",
            "/dangling",
            "/chain-out",
        ] {
            let response = client.get(target);
            assert!([403, 404].contains(&response.status), "{target}");
            assert!(!response.text().contains(SECRET), "{target}");
        }
        let server = serve(engine, &tree, &["--symlinks=off"]);
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").text(), "hello");
        for target in ["/inside", "/dir/b.txt", "/absolute", "/out"] {
            assert!([403, 404].contains(&client.get(target).status), "{target}");
        }
        let server = serve(engine, &tree, &["--symlinks=on"]);
        let mut client = server.connect();
        assert_eq!(client.get("/inside").text(), "hello");
        assert_eq!(client.get("/out").text(), SECRET);
        assert_eq!(client.get("/sibling/x.txt").text(), SECRET);
        assert!([403, 404].contains(&client.get("/loop").status));
    });
}

#[test]
fn a_link_that_turns_outwards_is_not_followed_any_more() {
    on_both(|engine| {
        let tree = Tree::with(&[("in/x.txt", "inside")]);
        fs::create_dir(tree.outside().join("out")).expect("a sibling");
        fs::write(tree.outside().join("out/x.txt"), SECRET).expect("the secret");
        tree.link("link", "in");
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        assert_eq!(client.get("/link/x.txt").text(), "inside");
        // Turned back and forth, the link never shows what is outside.
        for _ in 0..200 {
            for target in ["../out", "in"] {
                let new = tree.path("new-link");
                std::os::unix::fs::symlink(target, &new).expect("symlink");
                fs::rename(&new, tree.path("link")).expect("rename");
                let response = client.get("/link/x.txt");
                assert!(!response.text().contains(SECRET), "the race was won");
            }
        }
    });
}

#[test]
fn dot_files_are_hidden_but_for_well_known() {
    on_both(|engine| {
        let tree = Tree::with(&[
            (".env", SECRET),
            (".git/config", SECRET),
            ("d/.htpasswd", SECRET),
            (".well-known/acme-challenge/token", "challenge"),
            (".well-known/.hidden", SECRET),
            ("d/.well-known/x", SECRET),
        ]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for target in [
            "/.env",
            "/%2eenv",
            "/.git/config",
            "/.git/",
            "/.git",
            "/d/.htpasswd",
            "/d/%2Ehtpasswd",
            "/.well-known/.hidden",
            "/d/.well-known/x",
            "/x/../.env",
        ] {
            let response = client.get(target);
            assert_eq!(response.status, 404, "{target}");
        }
        let target = "/.well-known/acme-challenge/token";
        assert_eq!(client.get(target).text(), "challenge");
        let server = serve(engine, &tree, &["--hidden-files"]);
        assert_eq!(server.connect().get("/.env").text(), SECRET);
    });
}

#[test]
fn only_regular_files_are_served_and_nothing_blocks() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        mkfifoat(CWD, tree.path("fifo"), Mode::from_raw_mode(0o666)).expect("mkfifo");
        let _socket = UnixListener::bind(tree.path("socket")).expect("a socket");
        let mut special = vec!["/fifo", "/socket", "/fifo-link"];
        tree.link("fifo-link", "fifo");
        // Only root may make devices.
        let zero = rustix::fs::makedev(1, 5);
        let mode = Mode::from_raw_mode(0o666);
        if mknodat(
            CWD,
            tree.path("zero"),
            FileType::CharacterDevice,
            mode,
            zero,
        )
        .is_ok()
        {
            special.push("/zero");
        }
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for round in 0..3 {
            for target in &special {
                let response = client.get(target);
                assert_eq!(response.status, 403, "{target}, round {round}");
            }
            assert_eq!(client.get("/a.txt").text(), "hello");
        }
    });
}

#[test]
fn a_file_that_may_not_be_read_is_403() {
    use std::os::unix::fs::PermissionsExt;
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello"), ("d/b.txt", "b")]);
        for name in ["a.txt", "d"] {
            fs::set_permissions(tree.path(name), fs::Permissions::from_mode(0o000)).expect("chmod");
        }
        // Root reads everything: there is nothing to see then.
        if fs::File::open(tree.path("a.txt")).is_err() {
            let server = serve(engine, &tree, &[]);
            let mut client = server.connect();
            assert_eq!(client.get("/a.txt").status, 403);
            assert_eq!(client.get("/d/b.txt").status, 403);
            assert_eq!(client.get("/d/").status, 403);
        }
        fs::set_permissions(tree.path("d"), fs::Permissions::from_mode(0o755)).expect("chmod");
    });
}
