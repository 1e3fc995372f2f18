//! What connections of HTTP/2 hold. In a test binary of its own: the memory is the process's.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::frames::*;
use support::{Bed, Node, SOON, http_app, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Memory of this process that is in use, in bytes.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// An origin that answers every request with more than anybody takes, and reads nothing of a body. It is light, since its
/// memory counts as well.
fn endless() -> std::net::SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut first = [0; 4];
                    let _ = stream.read_exact(&mut first).await;
                    if &first == b"POST" {
                        std::future::pending::<()>().await;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
                    while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
                });
            }
        });
    });
    address.recv_timeout(SOON).unwrap()
}

/// A connection whose settings are said and confirmed; nothing of a test's client is held for it.
fn greeted(bed: &Bed, port: scrimp::name::Port) -> TcpStream {
    let mut stream = bed.connect(port);
    let settings = Frame::new(SETTINGS, 0, 0, setting(4, (1 << 31) - 1)).bytes();
    let ack = Frame::new(SETTINGS, ACK, 0, []).bytes();
    let window = Frame::new(WINDOW_UPDATE, 0, 0, ((1_u32 << 31) - 1 - 65535).to_be_bytes()).bytes();
    stream.write_all(&[PREFACE, &settings, &ack, &window].concat()).unwrap();
    stream.read_exact(&mut [0; 9]).unwrap();
    stream
}

#[test]
fn a_connection_holds_little_and_never_much() {
    let origin = endless();
    let bed = Bed::with(|config| config.workers = 1);
    let port = bed.port();
    bed.publish_and_open(&[Node::new(1, vec![http_app("web", port, origin, &[], "/")])], port);
    bed.settle();

    const IDLE: usize = 400;
    drop(greeted(&bed, port));
    let before = memory();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| greeted(&bed, port)).collect();
    let each = memory().saturating_sub(before) / IDLE;
    println!("idle: {each} bytes each");
    assert!(each < 64 * 1024, "{each} bytes for an idle connection");
    drop(idle);

    // As many downloads as there may be, of which nothing is read; as many uploads, which nobody takes.
    for is_upload in [false, true] {
        let before = memory();
        let begun = bed.counters.requests.get() as usize;
        let busy: Vec<TcpStream> = (0..BUSY).map(|_| stalled(greeted(&bed, port), is_upload)).collect();
        until("all of them are there", || bed.counters.requests.get() as usize == begun + BUSY * 100);
        // Until nothing grows any more.
        let mut last = 0;
        until("it is as large as it gets", || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let now = memory();
            now.abs_diff(std::mem::replace(&mut last, now)) < 100_000
        });
        let each = last.saturating_sub(before) / BUSY;
        println!("busy, uploads: {is_upload}: {each} bytes each");
        assert!(each < 1 << 20, "{each} bytes for a busy connection");
        drop(busy);
    }
}

const BUSY: usize = 20;

/// Asks for as much as may be asked for, and goes no further.
fn stalled(mut stream: TcpStream, is_upload: bool) -> TcpStream {
    let mut bytes = Vec::new();
    for id in (1..200).step_by(2) {
        let (flags, method) = if is_upload { (END_HEADERS, "POST") } else { (END_HEADERS | END_STREAM, "GET") };
        bytes.extend(Frame::new(HEADERS, flags, id, request(method, "/", &[])).bytes());
    }
    // What the connection's window allows.
    for piece in 0..32 * u32::from(is_upload) {
        bytes.extend(Frame::new(DATA, 0, 1 + 2 * (piece % 100), [b'x'; 16000]).bytes());
    }
    stream.write_all(&bytes).unwrap();
    stream
}
