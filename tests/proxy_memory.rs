//! What connections hold. In a test binary of its own: the heap is the process's.
#![allow(missing_docs)]

mod support;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use cap::Cap;
use socket2::SockRef;
use support::frames::*;
use support::{Bed, Node, SOON, fill, http_app, read_all, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Counts what is allocated and not freed. The process's own size says less: what a crowd left behind in the heap is there
/// for the next, and is large or small by chance.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Of a body; not a part of each task that sends it.
static PIECE: [u8; 8192] = [b'x'; 8192];

/// So many requests for `/crowd` are answered together, so that each has a connection of its own.
const CROWD: usize = 30;

/// An origin that answers every request but for `/short` and `/crowd` with more than anybody takes, and reads nothing of a
/// body. It is light, since its memory counts as well.
fn endless() -> std::net::SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            // All of them come at once.
            let listener = socket.listen(4096).unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let all = Arc::new(tokio::sync::Barrier::new(CROWD));
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    let mut first = [0; 6];
                    let _ = stream.read_exact(&mut first).await;
                    if &first == b"POST /" {
                        std::future::pending::<()>().await;
                    }
                    if &first == b"GET /c" {
                        all.wait().await;
                    }
                    if matches!(&first, b"GET /s" | b"GET /c") {
                        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".as_slice();
                        let _ = stream.write_all(&[head, &PIECE[..1000]].concat()).await;
                        std::future::pending::<()>().await;
                    }
                    // Together, so that who reads the head has much of the body as well.
                    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n".as_slice();
                    let _ = stream.write_all(&[head, &PIECE, &PIECE].concat()).await;
                    while stream.write_all(&PIECE).await.is_ok() {}
                });
            }
        });
    });
    address.recv_timeout(SOON).unwrap()
}

/// A connection whose settings are said and confirmed; nothing of a test's client is held for it. Each stream may take
/// `window` bytes; all together what they want if it `is_wide`, and little otherwise.
fn greeted(bed: &Bed, port: scrimp::name::Port, window: u32, is_wide: bool) -> TcpStream {
    let mut stream = bed.connect(port);
    let settings = Frame::new(SETTINGS, 0, 0, setting(4, window)).bytes();
    let ack = Frame::new(SETTINGS, ACK, 0, []).bytes();
    let update = Frame::new(WINDOW_UPDATE, 0, 0, ((1_u32 << 31) - 1 - 65535).to_be_bytes()).bytes();
    stream.write_all(&[PREFACE, &settings, &ack, if is_wide { &update } else { &[] }].concat()).unwrap();
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

    // Connections to backends that are kept for the next request. What the origin has of them counts too.
    let before = HEAP.allocated();
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| bed.connect(port)).collect();
    for mut client in &crowd {
        client.write_all(b"GET /crowd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    }
    for client in &crowd {
        assert!(read_all(client).unwrap().ends_with(&PIECE[..1000]));
    }
    drop(crowd);
    until_gone(&bed);
    let each = HEAP.allocated().saturating_sub(before) / CROWD;
    println!("idle, to backends: {each} bytes each");
    assert!(each < 10 * 1024, "{each} bytes for an idle connection to a backend");

    const IDLE: usize = 400;
    let window = (1 << 31) - 1;
    drop(greeted(&bed, port, window, true));
    let before = HEAP.allocated();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| greeted(&bed, port, window, true)).collect();
    let each = HEAP.allocated().saturating_sub(before) / IDLE;
    println!("idle: {each} bytes each");
    assert!(each < 64 * 1024, "{each} bytes for an idle connection");
    drop(idle);
    until_gone(&bed);

    // Downloads of which nothing is read, and uploads which nobody takes.
    for is_upload in [false, true] {
        let each = held(&bed, 30, 1, || stalled_http1(bed.connect(port), is_upload));
        println!("busy, uploads: {is_upload}: {each} bytes each");
        assert!(each < 2 * 64 * 1024, "{each} bytes: more than 64 KiB each way");
    }
    // Of HTTP/2 as many as there may be at once.
    for (is_upload, is_wide) in [(false, true), (false, false), (true, true)] {
        let each = held(&bed, 20, 100, || stalled(greeted(&bed, port, window, is_wide), is_upload, "/"));
        println!("busy with HTTP/2, uploads: {is_upload}, wide: {is_wide}: {each} bytes each");
        assert!(each < 1 << 20, "{each} bytes for a busy connection");
    }
    // Short answers, of which nothing may be sent.
    let each = held(&bed, 20, 100, || stalled(greeted(&bed, port, 0, true), false, "/short"));
    println!("busy with HTTP/2, without a window: {each} bytes each");
    assert!(each < 1 << 20, "{each} bytes for a busy connection");
}

/// The bytes that each of so many connections takes, all of their requests begun.
fn held(bed: &Bed, count: usize, requests: usize, open: impl Fn() -> TcpStream) -> usize {
    let (before, begun) = (HEAP.allocated(), bed.counters.requests.get() as usize);
    let busy: Vec<TcpStream> = (0..count).map(|_| open()).collect();
    until("all of them are there", || bed.counters.requests.get() as usize == begun + count * requests);
    until_still("it is as large as it gets");
    assert_eq!(bed.counters.connect_failures.get(), 0, "not all of them have a backend");
    let each = HEAP.allocated().saturating_sub(before) / count;
    // Whose end waits behind bytes that nobody takes would be there for a while.
    busy.iter().for_each(|stream| SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap());
    drop(busy);
    until_gone(bed);
    each
}

/// Waits until no client is there, and nothing that one had.
fn until_gone(bed: &Bed) {
    until("all have gone", || bed.counters.connections_closed.get() == bed.counters.connections.get());
    until_still("what they had is gone");
}

/// Waits until nothing grows or shrinks any more.
fn until_still(what: &str) {
    let mut last = 0;
    until(what, || {
        std::thread::sleep(Duration::from_millis(300));
        let now = HEAP.allocated();
        now.abs_diff(std::mem::replace(&mut last, now)) < 10_000
    });
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
fn stalled(mut stream: TcpStream, is_upload: bool, path: &str) -> TcpStream {
    let mut bytes = Vec::new();
    for id in (1..200).step_by(2) {
        let (flags, method) = if is_upload { (END_HEADERS, "POST") } else { (END_HEADERS | END_STREAM, "GET") };
        bytes.extend(Frame::new(HEADERS, flags, id, request(method, path, &[])).bytes());
    }
    // What the connection's window allows.
    for piece in 0..32 * u32::from(is_upload) {
        bytes.extend(Frame::new(DATA, 0, 1 + 2 * (piece % 100), [b'x'; 16000]).bytes());
    }
    stream.write_all(&bytes).unwrap();
    stream
}
