use std::{net::TcpListener, time::{Duration, Instant}};
use milena_net::{cores::{Cores, CoresConfig}, tcp};
#[test]
fn connects() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || { for s in listener.incoming() { drop(s); } });
    // load
    let load: usize = std::env::var("LOAD").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for _ in 0..load { std::thread::spawn(|| loop { for i in 0..100_000u64 { std::hint::black_box(i); } std::thread::sleep(Duration::from_micros(300)); }); }
    let n: usize = std::env::var("N").ok().and_then(|v| v.parse().ok()).unwrap_or(500);
    let mut worst = Duration::ZERO;
    for i in 0..n {
        let begun = Instant::now();
        let cores = Cores::start(CoresConfig { pin: false, ..CoresConfig::new(1) }, move |_| move || async move {
            let b = Instant::now();
            let r = tcp::connect(address, Duration::from_secs(1)).await;
            (r.is_ok(), b.elapsed())
        }).unwrap();
        let r = cores.join();
        let took = begun.elapsed();
        worst = worst.max(took);
        if took > Duration::from_millis(500) { eprintln!("run {i}: {took:?} {r:?}"); }
    }
    eprintln!("worst {worst:?}");
}
