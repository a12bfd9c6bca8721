//! What a small request costs in our own code, piece by piece: `cargo bench`.
//!
//! Prints nanoseconds per piece, the median of several rounds. Compare runs on a quiet machine only;
//! nothing here asserts a time.

use std::hint::black_box;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use beltway::http::h1::encode::{DateCache, HeadContext, ResponseFraming, write_head};
use beltway::http::h1::{HeadLimits, HeadScanner, parse_head};
use beltway::http::router::{Pattern, Router, RouterCache};
use beltway::http::semantics::negotiate::{Coding, choose};
use beltway::http::types::{ResponseHead, Version};
use beltway::runtime::task::FuturePool;
use beltway::runtime::timer::Wheel;

const SMALL: &[u8] =
    b"GET /assets/app.js HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: bench/1.0\r\n\
Accept: */*\r\nConnection: keep-alive\r\n\r\n";

const BROWSER: &[u8] = b"GET /assets/app.js?v=8f3e HTTP/1.1\r\nHost: www.example.com\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
Referer: https://www.example.com/\r\nConnection: keep-alive\r\nSec-Fetch-Dest: script\r\n\
Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Site: same-origin\r\n\r\n";

const ROUNDS: usize = 9;
const PER_ROUND: u32 = 100_000;

fn bench(name: &str, mut piece: impl FnMut()) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            (0..PER_ROUND).for_each(|_| piece());
            begin.elapsed().as_nanos() as f64 / f64::from(PER_ROUND)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (median, spread) = (rounds[ROUNDS / 2], rounds[ROUNDS - 1] - rounds[0]);
    #[expect(clippy::print_stdout, reason = "this is what the program is for")]
    {
        println!("{name:<40} {median:>8.1} ns  (spread {spread:.1})");
    }
}

fn main() {
    let limits = HeadLimits::default();
    for (name, head) in [("small", SMALL), ("browser", BROWSER)] {
        bench(&format!("scan, {name} head of {} B", head.len()), || {
            let found = HeadScanner::default().scan(black_box(head), &limits);
            assert!(matches!(black_box(found), Ok(Some(_))));
        });
        bench(&format!("parse, {name} head"), || {
            assert!(black_box(&parse_head(black_box(head), &limits)).is_ok());
        });
        bench(&format!("parse and negotiate, {name} head"), || {
            let request = parse_head(head, &limits).expect("a valid head");
            black_box(choose(&request.fields, &[Coding::Brotli, Coding::Gzip]));
        });
    }
    encode();
    route();
    timers();
    pool();
}

fn encode() {
    let mut date = DateCache::new(1_700_000_000);
    let head = ResponseHead::new(200)
        .with("Content-Type", "text/javascript; charset=utf-8")
        .with("ETag", "\"400-18f2a3b4c5d6e7f8\"")
        .with("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
        .with("Accept-Ranges", "bytes");
    let context = HeadContext {
        version: Version::Http11,
        keep_alive: true,
        framing: ResponseFraming::Length(1024),
        date: &date.at(1_700_000_000).clone(),
    };
    let mut out = Vec::with_capacity(1024);
    bench("encode a head of four fields", || {
        out.clear();
        black_box(write_head(&mut out, black_box(&head), &context));
    });
}

fn route() {
    let routes = [
        "/api/*",
        "/assets/*",
        "=/healthz",
        "*.php",
        "/old/deep/er/*",
    ];
    let routes = routes
        .iter()
        .map(|text| (Pattern::parse(text).expect("a valid pattern"), ()));
    let router = Router::build(routes.collect()).expect("no conflict");
    let mut cache = RouterCache::new();
    bench("find a route among five", || {
        black_box(
            router
                .find(&mut cache, black_box("/assets/js/app.js"))
                .is_some(),
        );
    });
}

fn timers() {
    let mut wheel = Wheel::new(0);
    let mut now = 0;
    bench("arm and cancel a timer", || {
        now += 1;
        let key = wheel.insert(now + 75_000, now);
        black_box(wheel.cancel(key));
    });
}

fn pool() {
    let pool = FuturePool::default();
    let storage = [0_u8; 1024];
    bench("run a future of 1 KiB from the pool", || {
        let work = async {
            let kept = black_box(storage);
            std::future::ready(()).await;
            kept[0]
        };
        let mut pooled = std::pin::pin!(pool.boxed(work));
        let polled = pooled
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(0));
    });
}
