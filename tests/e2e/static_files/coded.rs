//! Files that were compressed beforehand, chosen by Accept-Encoding.

use crate::support::server::serve;
use crate::support::{Setup, Tree, on_both};

fn tree() -> Tree {
    let tree = Tree::with(&[
        ("all.js", "plain"),
        ("all.js.zst", "zstd!"),
        ("all.js.br", "brotli"),
        ("all.js.gz", "gzip.."),
        ("gz.css", "plain"),
        ("gz.css.gz", "gzip.."),
        ("none.css", "plain"),
        ("alone.txt.gz", "gzip.."),
        ("index.html", "plain index"),
        ("index.html.br", "brotli index"),
    ]);
    for name in [
        "all.js",
        "all.js.zst",
        "all.js.br",
        "all.js.gz",
        "gz.css",
        "none.css",
    ] {
        tree.set_modified(name, 1_700_000_000);
    }
    tree
}

#[test]
fn the_coding_is_chosen_by_weight_and_then_by_our_order() {
    on_both(|engine| {
        let tree = tree();
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for (target, accept, content, coding) in [
            ("/all.js", "", "plain", None),
            ("/all.js", "gzip", "gzip..", Some("gzip")),
            ("/all.js", "GZIP", "gzip..", Some("gzip")),
            ("/all.js", "gzip, deflate, br, zstd", "zstd!", Some("zstd")),
            ("/all.js", "gzip, br", "brotli", Some("br")),
            (
                "/all.js",
                "zstd;q=0.5, br;q=0.9, gzip;q=0.7",
                "brotli",
                Some("br"),
            ),
            ("/all.js", "zstd;q=0, br;q=0, gzip", "gzip..", Some("gzip")),
            ("/all.js", "*", "zstd!", Some("zstd")),
            ("/all.js", "*;q=0.5, gzip", "gzip..", Some("gzip")),
            ("/all.js", "identity", "plain", None),
            ("/all.js", "gzip;q=0", "plain", None),
            ("/all.js", "identity;q=1, gzip;q=0.1", "plain", None),
            ("/all.js", "deflate", "plain", None),
            ("/all.js", "xgzip", "plain", None),
            ("/gz.css", "gzip, br, zstd", "gzip..", Some("gzip")),
            ("/gz.css", "br", "plain", None),
            ("/none.css", "gzip, br, zstd", "plain", None),
            ("/", "br", "brotli index", Some("br")),
        ] {
            let fields = match accept {
                "" => String::new(),
                _ => format!("Accept-Encoding: {accept}\r\n"),
            };
            let response = client.get_with(target, &fields);
            let name = format!("{target} for {accept:?}");
            assert_eq!(response.text(), content, "{name}");
            assert_eq!(response.field("Content-Encoding"), coding, "{name}");
            let negotiated = !target.starts_with("/none");
            assert_eq!(
                response.lists("Vary", "Accept-Encoding"),
                negotiated,
                "{name}"
            );
            let media_type = match target {
                "/all.js" => "text/javascript; charset=utf-8",
                "/" => "text/html; charset=utf-8",
                _ => "text/css; charset=utf-8",
            };
            assert_eq!(response.must("Content-Type"), media_type, "{name}");
        }
        // Two lines are one list.
        let fields = "Accept-Encoding: deflate\r\nAccept-Encoding: br\r\n";
        assert_eq!(client.get_with("/all.js", fields).text(), "brotli");
        // The compressed file by its own name is a file like another.
        let response = client.get("/all.js.gz");
        assert_eq!(response.text(), "gzip..");
        assert_eq!(response.field("Content-Encoding"), None);
        assert_eq!(response.must("Content-Type"), "application/gzip");
        // A sidecar stands in for its file, it doesn't make one.
        let response = client.get_with("/alone.txt", "Accept-Encoding: gzip\r\n");
        assert_eq!(response.status, 404);
    });
}

#[test]
fn each_coding_has_its_own_tag_and_its_own_ranges() {
    on_both(|engine| {
        let tree = tree();
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let mut tags: Vec<String> = ["identity", "zstd", "br", "gzip"]
            .iter()
            .map(|coding| {
                let fields = format!("Accept-Encoding: {coding}\r\n");
                let response = client.get_with("/all.js", &fields);
                response.must("ETag").to_owned()
            })
            .collect();
        let fields = format!("Accept-Encoding: br\r\nIf-None-Match: {}\r\n", tags[2]);
        let response = client.get_with("/all.js", &fields);
        assert_eq!(response.status, 304);
        assert!(response.lists("Vary", "Accept-Encoding"));
        let fields = format!("Accept-Encoding: br\r\nIf-None-Match: {}\r\n", tags[3]);
        assert_eq!(client.get_with("/all.js", &fields).status, 200);
        let fields = "Accept-Encoding: br\r\nRange: bytes=0-2\r\n";
        let response = client.get_with("/all.js", fields);
        assert_eq!((response.status, response.text()), (206, "bro"));
        assert_eq!(response.must("Content-Range"), "bytes 0-2/6");
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), 4);
    });
}

#[test]
fn codings_are_those_of_the_configuration_in_its_order() {
    on_both(|engine| {
        let tree = tree();
        let config = format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n\
             precompressed = [\"gzip\", \"br\"]\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let mut client = server.connect();
        let all = "Accept-Encoding: zstd, br, gzip\r\n";
        assert_eq!(client.get_with("/all.js", all).text(), "gzip..");
        assert_eq!(
            client
                .get_with("/all.js", "Accept-Encoding: zstd\r\n")
                .text(),
            "plain"
        );

        let server = serve(engine, &tree, &["--no-precompressed"]);
        let response = server.connect().get_with("/all.js", all);
        assert_eq!(response.text(), "plain");
        assert!(!response.lists("Vary", "Accept-Encoding"));
    });
}
