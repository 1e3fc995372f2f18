//! What connections hold. In a test binary of its own: the memory is the process's.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::frames::*;
use support::{Bed, Node, SOON, fill, http_app, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Memory of this process that is in use, in bytes.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Of a body; not a part of each task that sends it.
static PIECE: [u8; 8192] = [b'x'; 8192];

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
                    while stream.write_all(&PIECE).await.is_ok() {}
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

    // Downloads of which nothing is read, and uploads which nobody takes; the larger ones later, since what they leave
    // behind would hide the others.
    for is_upload in [false, true] {
        let each = held(&bed, 30, 1, || stalled_http1(bed.connect(port), is_upload));
        println!("busy, uploads: {is_upload}: {each} bytes each");
        assert!(each < 2 * 64 * 1024, "{each} bytes: more than 64 KiB each way");
    }
    // Of HTTP/2 as many as there may be at once.
    for is_upload in [false, true] {
        let each = held(&bed, 20, 100, || stalled(greeted(&bed, port), is_upload));
        println!("busy with HTTP/2, uploads: {is_upload}: {each} bytes each");
        assert!(each < 1 << 20, "{each} bytes for a busy connection");
    }
}

/// The bytes that each of so many connections takes, all of their requests begun.
fn held(bed: &Bed, count: usize, requests: usize, open: impl Fn() -> TcpStream) -> usize {
    let before = memory();
    let begun = bed.counters.requests.get() as usize;
    let busy: Vec<TcpStream> = (0..count).map(|_| open()).collect();
    until("all of them are there", || bed.counters.requests.get() as usize == begun + count * requests);
    // Until nothing grows any more.
    let mut last = 0;
    until("it is as large as it gets", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = memory();
        now.abs_diff(std::mem::replace(&mut last, now)) < 100_000
    });
    drop(busy);
    last.saturating_sub(before) / count
}

/// Asks for more than it reads, or sends more than is read.
fn stalled_http1(mut stream: TcpStream, is_upload: bool) -> TcpStream {
    if is_upload {
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").unwrap();
        fill(&stream, &[b'x'; 65_536]);
    } else {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    stream
}

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
