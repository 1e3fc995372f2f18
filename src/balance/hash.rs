//! Always the same backend for a client's address: weighted rendezvous hashing (Thaler and Ravishankar 1998;
//! weights as in Schindelhauer and Schomaker 2005). A backend that leaves moves its own clients only.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::backend::Backend;

pub(super) fn pick(backends: &[Arc<Backend>], client: IpAddr, tried: &[SocketAddr]) -> Option<usize> {
    let client = client.to_canonical();
    (0..backends.len())
        .filter(|at| !tried.contains(&backends[*at].address))
        .map(|at| (score(&backends[at], client), at))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, at)| at)
}

/// `weight / -ln(u)` for a `u` in (0, 1) that depends on the pair alone, so that all balancers agree.
fn score(backend: &Backend, client: IpAddr) -> f64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    backend.address.hash(&mut hasher);
    client.hash(&mut hasher);
    // 53 bits make a float; half a step up keeps it off 0 and 1.
    let unit = ((mix(hasher.finish()) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(backend.weight.get()) / -unit.ln()
}

/// FNV-1a: the standard library's own hasher promises nothing across versions, and all balancers must agree.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014): FNV's high bits are poor for short keys.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::backend;

    #[test]
    fn a_backend_that_leaves_moves_its_own_clients_only() {
        let all = [backend(1, 100), backend(2, 100), backend(3, 100), backend(4, 100)];
        let fewer = [all[0].clone(), all[1].clone(), all[3].clone()];
        let mut moved = 0;
        for host in 0..2000_u32 {
            let client = IpAddr::from(host.to_be_bytes());
            let before = all[pick(&all, client, &[]).unwrap()].address;
            let after = fewer[pick(&fewer, client, &[]).unwrap()].address;
            if before == all[2].address {
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((400..600).contains(&moved), "{moved} of 2000 were on the one of four that left");
    }
}
