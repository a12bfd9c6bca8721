//! Whether the kernel encrypts is found out at the start and told. What it then does is tested in an
//! emulated machine (`tests/emulated`), since few kernels that tests run on have it.

use super::*;

/// Whether the kernel has TLS (`net.ipv4.tcp_available_ulp`), after a server has tried it.
fn kernel_has_it() -> bool {
    let known = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp");
    known.is_ok_and(|known| known.split_ascii_whitespace().any(|name| name == "tls"))
}

fn config(tree: &Tree, pem: &Pem, server: &str) -> String {
    format!(
        "[server]\n{server}\n{}",
        site("a.example", tree, &pem.line(""))
    )
}

/// What the status says of it: in words, and connections in all.
fn told(server: &Server) -> (String, u64) {
    let status = server.status();
    let worker = &status["generations"][0]["workers"][0];
    let total = worker["cores"][0]["kernel_tls"]["total"].as_u64();
    let means = worker["kernel_tls"].as_str().expect("words").to_owned();
    (means, total.expect("a number"))
}

#[test]
fn large_files_arrive_whoever_encrypts_them_and_the_status_says_who() {
    on_both(|engine| {
        let tree = Tree::new();
        let large = noise((1 << 20) + 77);
        tree.write("large.bin", &large);
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let trusting = trusting(&[&pem], BOTH);
        for (keys, wanted) in [
            ("", true),
            ("ktls = \"auto\"", true),
            ("ktls = \"off\"", false),
        ] {
            let server = Setup::run(engine, &config(&tree, &pem, keys)).start();
            let mut client = Client::connect(&server, &trusting, "a.example");
            for _ in 0..2 {
                assert!(client.get("a.example", "/large.bin").1 == large);
            }
            let (means, total) = told(&server);
            let encrypts = wanted && kernel_has_it();
            assert_eq!(total, u64::from(encrypts), "{means}");
            let expected = match (wanted, encrypts) {
                (_, true) => "on (TLSv1.2 AES-128-GCM",
                (true, false) => "off: the kernel has no TLS",
                (false, false) => "off: switched off",
            };
            assert!(means.starts_with(expected), "{means}");
            let text = server.must(&["status"]).stdout;
            assert!(text.contains(&format!("    ktls      {means}")), "{text}");
        }
    });
}

#[test]
fn who_demands_what_the_kernel_has_not_is_told_at_the_start_and_at_a_reload() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let server = Setup::run(engine, &config(&tree, &pem, "")).start();
        if kernel_has_it() {
            crate::support::skipped("the kernel here has TLS");
            return;
        }
        let demanding = config(&tree, &pem, "ktls = \"on\"");
        let output = Setup::run(engine, &demanding).fail();
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        for words in [
            "ktls = \"on\" can't be had: the kernel has no TLS",
            "modprobe tls",
            "ktls = \"auto\"",
        ] {
            assert!(output.stderr.contains(words), "{}", output.stderr);
        }
        // A one-liner, without a master.
        let output = Setup::serve(engine, tree.root())
            .arguments(&["--ktls=on"])
            .fail();
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains("can't be had"), "{}", output.stderr);
        server.write_config(&demanding);
        let reload = server.control(&["reload"]);
        assert_ne!(reload.code, Some(0), "{}", reload.stdout);
        let mut client = Client::connect(&server, &trusting(&[&pem], BOTH), "a.example");
        assert_eq!(
            client.get("a.example", "/a.txt").1,
            b"content",
            "it goes on"
        );
    });
}
