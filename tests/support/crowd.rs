//! Thousands of UDP clients.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};

/// One socket that speaks for all of 127.0.0.0/8: as many clients as one likes, for one descriptor.
pub struct Crowd {
    socket: UdpSocket,
    to: SockaddrIn,
    control: Vec<u8>,
}

impl Crowd {
    pub fn new(to: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).unwrap();
        let _ = socket.set_recv_buffer_size(4 * 1024 * 1024);
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
        let socket: UdpSocket = socket.into();
        let SocketAddr::V4(to) = to else { panic!("{to}") };
        Self { socket, to: SockaddrIn::from(to), control: nix::cmsg_space!(libc::in_pktinfo) }
    }

    fn client(number: u32) -> Ipv4Addr {
        // From 127.16.0.0 on: clear of what the tests bind.
        Ipv4Addr::from(0x7f10_0000 + number)
    }

    pub fn send(&self, number: u32, bytes: &[u8]) {
        let from = libc::in_addr { s_addr: u32::from(Self::client(number)).to_be() };
        let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: libc::in_addr { s_addr: 0 } };
        let said = [ControlMessage::Ipv4PacketInfo(&info)];
        let slices = [IoSlice::new(bytes)];
        while sendmsg(self.socket.as_raw_fd(), &slices, &said, MsgFlags::empty(), Some(&self.to)).is_err() {
            thread::yield_now();
        }
    }

    /// An answer, and for whom; none: there is none for so long.
    pub fn receive(&mut self, wait: Duration) -> Option<(u32, Vec<u8>)> {
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 2048];
        let (length, to) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::empty();
            let message =
                recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut slices, Some(&mut self.control), flags).ok()?;
            let to = message.cmsgs().unwrap().find_map(|said| match said {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(u32::from_be(info.ipi_addr.s_addr)),
                _ => None,
            });
            (message.bytes, to.unwrap())
        };
        Some((to - 0x7f10_0000, buffer[..length].to_vec()))
    }

    /// Asks for each of the clients until each has an answer; what the answers say. Each question is answered by one.
    /// `read` says none of an answer to an earlier question, which may have come late.
    pub fn ask_all<T: PartialEq>(
        &mut self,
        clients: std::ops::Range<u32>,
        question: impl Fn(u32) -> Vec<u8>,
        read: impl Fn(u32, &[u8]) -> Option<T>,
    ) -> HashMap<u32, T> {
        let mut answers = HashMap::new();
        let start = Instant::now();
        while answers.len() < clients.len() {
            assert!(start.elapsed() < Duration::from_secs(60), "{} of {} were answered", answers.len(), clients.len());
            // So many at a time as fit into everybody's buffers.
            let missing: Vec<u32> = clients.clone().filter(|client| !answers.contains_key(client)).take(200).collect();
            missing.iter().for_each(|client| self.send(*client, &question(*client)));
            for _ in &missing {
                let Some((client, answer)) = self.receive(Duration::from_millis(300)) else {
                    break;
                };
                let Some(answer) = read(client, &answer) else {
                    continue;
                };
                if let Some(known) = answers.get(&client) {
                    assert!(*known == answer, "client {client} was answered by two");
                }
                answers.insert(client, answer);
            }
        }
        answers
    }
}
