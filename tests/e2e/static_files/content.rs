//! Content arrives whole, of any size, under any name, with its type.

use std::thread;

use crate::support::server::serve;
use crate::support::{Setup, Tree, noise, on_both};

#[test]
fn types_follow_the_extension_and_text_has_a_charset() {
    on_both(|engine| {
        let tree = Tree::new();
        let cases = [
            ("a.html", "text/html; charset=utf-8"),
            ("a.HTML", "text/html; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.png", "image/png"),
            ("a.jpg", "image/jpeg"),
            ("a.webp", "image/webp"),
            ("a.woff2", "font/woff2"),
            ("a.wasm", "application/wasm"),
            ("a.pdf", "application/pdf"),
            ("a.mp4", "video/mp4"),
            ("noextension", "application/octet-stream"),
            ("a.unknown-kind", "application/octet-stream"),
        ];
        for (name, _) in cases {
            tree.write(name, "x");
        }
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for (name, media_type) in cases {
            let response = client.get(&format!("/{name}"));
            let found = response.must("Content-Type");
            // A charset where the format has its own is harmless, not required.
            assert!(
                found == media_type || found == format!("{media_type}; charset=utf-8"),
                "{name}: {found}"
            );
        }
    });
}

#[test]
fn files_of_every_size_arrive_whole() {
    on_both(|engine| {
        let tree = Tree::new();
        let sizes = [
            0, 1, 2, 1000, 4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537,
            131_073, 1_000_003,
        ];
        for size in sizes {
            tree.write(&format!("{size}.bin"), noise(size));
        }
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for _ in 0..3 {
            for size in sizes {
                let response = client.get(&format!("/{size}.bin"));
                assert_eq!(response.status, 200);
                assert_eq!(response.must("Content-Length"), size.to_string());
                assert!(response.body == noise(size), "{size}: other content");
            }
        }
    });
}

#[test]
fn many_download_a_large_file_at_once() {
    on_both(|engine| {
        let tree = Tree::new();
        let content = noise(8 << 20);
        tree.write("large.bin", &content);
        let server = Setup::serve(engine, tree.root()).workers(2).start();
        thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let response = server.connect().get("/large.bin");
                    assert!(response.body == content, "other content");
                });
            }
        });
    });
}

#[test]
fn names_are_percent_decoded_once() {
    on_both(|engine| {
        let tree = Tree::with(&[
            ("größe 1.txt", "umlaut"),
            ("日本語.txt", "japanese"),
            ("🚀.txt", "rocket"),
            ("a+b&c=d;e,f.txt", "delimiters"),
            ("50%.txt", "percent"),
            ("%41.txt", "looks encoded"),
            ("q?x#y.txt", "question"),
            ("quote\"'.txt", "quotes"),
            ("...", "dots"),
            ("~user", "tilde"),
        ]);
        let server = serve(engine, &tree, &["--hidden-files"]);
        let mut client = server.connect();
        for (target, content) in [
            ("/gr%C3%B6%C3%9Fe%201.txt", "umlaut"),
            ("/gr%c3%b6%c3%9fe%201.txt", "umlaut"),
            ("/%E6%97%A5%E6%9C%AC%E8%AA%9E.txt", "japanese"),
            ("/%F0%9F%9A%80.txt", "rocket"),
            ("/a+b&c=d;e,f.txt", "delimiters"),
            ("/%61%2Bb%26c%3Dd%3Be%2Cf.txt", "delimiters"),
            ("/50%25.txt", "percent"),
            ("/%2541.txt", "looks encoded"),
            ("/q%3Fx%23y.txt", "question"),
            ("/quote%22'.txt", "quotes"),
            ("/...", "dots"),
            ("/~user", "tilde"),
            ("/%7Euser", "tilde"),
        ] {
            assert_eq!(client.get(target).text(), content, "{target}");
        }
        // Nothing is decoded twice, and what isn't UTF-8 is refused.
        assert_eq!(client.get("/%41.txt").status, 404);
        assert_eq!(client.get("/a%20b%26c=d;e,f.txt").status, 404);
        for target in [
            "/50%.txt",
            "/%",
            "/%4",
            "/%zz",
            "/%ff",
            "/%c0%ae",
            "/gr%F6sse",
        ] {
            assert_eq!(server.connect().get(target).status, 400, "{target}");
        }
    });
}

#[test]
fn a_query_does_not_change_which_file_it_is() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for target in [
            "/a.txt?",
            "/a.txt?x=y",
            "/a.txt?/../../etc/passwd",
            "/a.txt?a?b%00",
        ] {
            assert_eq!(client.get(target).text(), "hello", "{target}");
        }
    });
}

#[test]
fn error_pages_say_nothing_about_the_inside() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let response = client.get("/<script>alert(1)</script>");
        assert_eq!(response.status, 404);
        let text = response.text();
        let root = tree.root();
        for inside in [
            root.to_str().expect("UTF-8"),
            "script",
            "0.1",
            "No such file",
        ] {
            assert!(!text.contains(inside), "{text}");
        }
    });
}
