//! Directories: index files, the slash, listings, single-page applications, error pages.

use std::fs;

use crate::support::server::serve;
use crate::support::{Setup, Tree, on_both};

#[test]
fn index_files_answer_for_their_directory() {
    on_both(|engine| {
        let tree = Tree::with(&[
            ("index.html", "top"),
            ("d/index.html", "html of d"),
            ("d/index.htm", "htm of d"),
            ("e/index.htm", "htm of e"),
            ("f/x.txt", "x"),
            ("g/index.html/x", "a directory with that name"),
        ]);
        let config = format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n\
             index = [\"index.html\", \"index.htm\"]\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let mut client = server.connect();
        for (target, content) in [
            ("/", "top"),
            ("/?x", "top"),
            ("/d/", "html of d"),
            ("/d/index.htm", "htm of d"),
            ("/e/", "htm of e"),
            ("/d/../e/", "htm of e"),
        ] {
            let response = client.get(target);
            assert_eq!(response.text(), content, "{target}");
            assert_eq!(response.must("Content-Type"), "text/html; charset=utf-8");
        }
        // A configured site lists nothing unless asked.
        for target in ["/f/", "/g/"] {
            let response = client.get(target);
            assert_eq!(response.status, 403, "{target}");
            assert!(!response.text().contains("x.txt"));
        }
    });
}

#[test]
fn an_index_file_that_is_not_served_is_not_passed_over() {
    on_both(|engine| {
        let tree = Tree::with(&[("d/index.htm", "another"), ("d/secret.txt", "x")]);
        fs::write(tree.outside().join("page"), "outside").expect("a file is written");
        tree.link("d/index.html", tree.outside().join("page"));
        let config = format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\nlist = true\n\
             index = [\"index.html\", \"index.htm\"]\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let response = server.connect().get("/d/");
        assert_eq!(response.status, 403);
        assert!(!response.text().contains("secret"), "no listing instead");
    });
}

#[test]
fn a_directory_without_its_slash_is_redirected() {
    on_both(|engine| {
        let tree = Tree::with(&[
            ("d/index.html", "d"),
            ("d e/ü/index.html", "odd"),
            ("a.txt", "a"),
        ]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for (target, location) in [
            ("/d", "/d/"),
            ("/d?x=y&z", "/d/?x=y&z"),
            ("/d?", "/d/?"),
            ("/x/../d", "/d/"),
            ("/d%20e/%C3%BC", "/d%20e/%C3%BC/"),
            // Never `//d`, which a browser would read as another host.
            ("//d", "/d/"),
            ("///d", "/d/"),
            ("/.//d", "/d/"),
        ] {
            let response = client.get(target);
            assert!([301, 308].contains(&response.status), "{target}");
            assert_eq!(response.must("Location"), location, "{target}");
        }
        // A file is no directory.
        assert_eq!(client.get("/a.txt/").status, 404);
        assert_eq!(client.get("/a.txt/b").status, 404);
        assert_eq!(client.get("/missing/").status, 404);
    });
}

#[test]
fn a_listing_shows_what_is_served_and_nothing_else() {
    on_both(|engine| {
        let tree = Tree::with(&[
            ("b.txt", "12345"),
            ("a <b>&\".txt", "x"),
            ("sub/x", "x"),
            (".secret", "x"),
            ("file10", ""),
            ("file9", ""),
        ]);
        tree.write("ü.txt", "");
        tree.set_modified("b.txt", 1_000_000_000);
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            tree.path("fifo"),
            rustix::fs::Mode::from_raw_mode(0o644),
        )
        .expect("mkfifo");
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let page = client.get("/");
        assert_eq!(page.status, 200);
        assert_eq!(page.must("Content-Type"), "text/html; charset=utf-8");
        let html = page.text();
        assert!(
            html.contains("b.txt") && html.contains("2001-09-09"),
            "{html}"
        );
        assert!(
            html.contains("href=\"sub/\"") || html.contains("href=\"./sub/\""),
            "{html}"
        );
        assert!(
            html.contains("a%20%3Cb%3E") && html.contains("&lt;b&gt;"),
            "{html}"
        );
        assert!(!html.contains("<b>") && !html.contains(".secret") && !html.contains("fifo"));
        let (nine, ten) = (html.find("file9"), html.find("file10"));
        assert!(nine < ten, "numbers in names by their value");

        for response in [
            client.get_with("/", "Accept: application/json\r\n"),
            client.get("/?format=json"),
        ] {
            assert_eq!(response.must("Content-Type"), "application/json");
            let json: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
            let text = json.to_string();
            assert!(text.contains("b.txt") && text.contains("ü.txt"), "{text}");
            assert!(
                !text.contains(".secret") && !text.contains("fifo"),
                "{text}"
            );
        }
        // Every link of the page leads somewhere.
        let links: Vec<&str> = html
            .split("href=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .filter(|link| !link.starts_with('?') && !link.starts_with('#'))
            .collect();
        assert!(links.len() >= 6, "{links:?}");
        for link in links {
            let target = format!("/{}", link.trim_start_matches("./").trim_start_matches('/'));
            assert_eq!(
                client.get(&target.replace("&amp;", "&")).status,
                200,
                "{link}"
            );
        }
    });
}

#[test]
fn a_listing_can_be_sorted_and_may_be_off() {
    on_both(|engine| {
        let tree = Tree::with(&[("aa", "1234567"), ("bb", "1"), ("cc", "123")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let mut order = |query: &str| {
            let html = client.get(query).text().to_owned();
            let mut names = ["aa", "bb", "cc"].map(|name| {
                let at = html.find(&format!("{name}\"")).expect("it is listed");
                (at, name)
            });
            names.sort_unstable();
            names.map(|(_, name)| name).concat()
        };
        assert_eq!(order("/"), "aabbcc");
        assert_eq!(order("/?sort=name&order=desc"), "ccbbaa");
        assert_eq!(order("/?sort=size&order=asc"), "bbccaa");
        assert_eq!(order("/?sort=size&order=desc"), "aaccbb");
        let server = serve(engine, &tree, &["--no-list"]);
        assert_eq!(server.connect().get("/").status, 403);
    });
}

#[test]
fn a_large_directory_is_listed_while_others_are_served() {
    on_both(|engine| {
        let tree = Tree::with(&[("index.html", "top")]);
        fs::create_dir(tree.path("many")).expect("mkdir");
        for number in 0..3000 {
            tree.write(&format!("many/{number}"), "");
        }
        let server = serve(engine, &tree, &[]);
        let mut lister = server.connect();
        lister.send("GET /many/ HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(server.connect().get("/").text(), "top");
        let response = lister.response();
        assert!(response.text().contains("2999"));
    });
}

#[test]
fn the_page_of_an_application_answers_for_its_paths_only() {
    on_both(|engine| {
        let tree = Tree::with(&[("index.html", "app"), ("app.js", "code"), ("d/x.txt", "x")]);
        let config = format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\nspa = true\n\
             [site.\"*\".routes]\n\"/api/*\" = {{ respond = 404, body = \"no such call\" }}\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let mut client = server.connect();
        for (target, status, content) in [
            ("/", 200, "app"),
            ("/users/42", 200, "app"),
            ("/users/42/", 200, "app"),
            ("/users?x=a.js", 200, "app"),
            ("/app.js", 200, "code"),
            ("/api/x", 404, "no such call"),
        ] {
            let response = client.get(target);
            assert_eq!(
                (response.status, response.text()),
                (status, content),
                "{target}"
            );
        }
        // A failed deployment must not become a syntax error.
        for target in ["/missing.js", "/assets/missing.css", "/users/a.b"] {
            assert_eq!(client.get(target).status, 404, "{target}");
        }
        assert_eq!(client.request("POST", "/users/42", "").status, 405);
        let response = client.get("/users");
        assert_eq!(response.must("Content-Type"), "text/html; charset=utf-8");
    });
}

#[test]
fn error_pages_of_the_site_keep_the_status() {
    on_both(|engine| {
        let tree = Tree::with(&[
            ("index.html", "top"),
            ("404.html", "my 404"),
            ("sorry.html", "my 4xx"),
            ("d/x.txt", "x"),
        ]);
        let config = format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n\
             error_pages = {{ 404 = \"404.html\", 4xx = \"sorry.html\" }}\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let mut client = server.connect();
        let response = client.get("/missing");
        assert_eq!((response.status, response.text()), (404, "my 404"));
        assert_eq!(response.must("Content-Type"), "text/html; charset=utf-8");
        assert_eq!(
            client.get_with("/missing", "Range: bytes=0-1\r\n").text(),
            "my 404"
        );
        let response = client.get("/d/");
        assert_eq!((response.status, response.text()), (403, "my 4xx"));
        let response = client.get_with("/index.html", "Range: bytes=100-\r\n");
        assert_eq!((response.status, response.text()), (416, "my 4xx"));
        assert_eq!(response.must("Content-Range"), "bytes */3");
        let response = client.request("DELETE", "/", "");
        assert_eq!((response.status, response.text()), (405, "my 4xx"));
        assert!(response.lists("Allow", "GET"));
        let head = client.request("HEAD", "/missing", "");
        assert_eq!((head.status, head.must("Content-Length")), (404, "6"));
        // A page that is gone does not make things worse.
        fs::remove_file(tree.path("404.html")).expect("remove");
        crate::support::wait_until("the page is gone", crate::support::PATIENCE, || {
            let response = client.get("/missing");
            assert_eq!(response.status, 404);
            response.text() != "my 404"
        });
    });
}
