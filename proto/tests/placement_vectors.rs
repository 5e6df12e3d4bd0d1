//! Golden values of placement. They are the same for ever: a changed one moves every key of every cluster.

use milena_proto::{
    limits::VIRTUAL_SHARDS,
    placement::{WEIGHT_FULL, core, jump, key_hash, mix64, slot, virtual_shard},
};
use xxhash_rust::xxh64::xxh64;

const CORE: u64 = 0xA24B_AED4_963E_E407;

#[test]
fn jump_gives_the_values_of_its_reference_implementations() {
    let first: Vec<u32> = (0..20).map(|key| jump(key, 100)).collect();
    assert_eq!(first, [0, 55, 62, 8, 45, 59, 86, 97, 82, 59, 73, 37, 17, 56, 86, 21, 90, 37, 38, 83]);
    for (key, buckets, bucket) in [
        (10_863_919_174_838_991, 11, 6),
        (2_016_238_256_797_177_309, 11, 3),
        (1_673_758_223_894_951_030, 11, 5),
        (2, 100_001, 80_343),
        (2201, 100_001, 22_152),
        (2202, 100_001, 15_018),
        (1, 1, 0),
        (42, 57, 43),
        (0xDEAD_10CC, 1, 0),
        (0xDEAD_10CC, 666, 361),
        (256, 1024, 520),
    ] {
        assert_eq!(jump(key, buckets), bucket, "jump({key}, {buckets})");
    }
    let path = |key, last| (1..=last).map(|buckets| jump(key, buckets)).collect::<Vec<_>>();
    assert_eq!(path(1, 19), [0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 17, 17]);
    assert_eq!(path(0xDEAD_BEEF, 19), [0, 1, 2, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 16, 16, 16]);
    assert_eq!(path(0x0DDC_0FFE_EBAD_F00D, 19), [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 15, 15, 15, 15]);
    assert_eq!(path(0, 20), [0; 20]);
}

#[test]
fn xxh64_and_the_mixer_give_their_published_values() {
    for (text, hash) in [
        ("", 0xef46_db37_51d8_e999),
        ("a", 0xd24e_c4f1_a98c_6e5b),
        ("abc", 0x44bc_2cf5_ad77_0999),
        ("Nobody inspects the spammish repetition", 0xfbce_a83c_8a37_8bf1),
    ] {
        assert_eq!(xxh64(text.as_bytes(), 0), hash, "{text:?}");
    }
    assert_eq!(mix64(0), 0);
    assert_eq!(mix64(1), 0x5692_161d_100b_05e5);
    assert_eq!(mix64(0x9E37_79B9_7F4A_7C15), 0xe220_a839_7b1d_cdaf);
}

#[test]
fn the_scheme_places_these_keys_here() {
    let bytes: Vec<u8> = (0..32).collect();
    let long = [b'x'; 1024];
    // bucket, key, hash, slots of S = 1, 3, 16, 100, 4096, core hash over 4 and 16, S = 100 with that slot dead
    type Row<'a> = (&'a str, &'a [u8], u64, [usize; 5], [u32; 2], usize);
    let rows: [Row<'_>; 6] = [
        ("default", b"my_key", 0x8b9a_db4e_8a93_344f, [0, 2, 8, 8, 1756], [2, 10], 27),
        ("default", b"a", 0x622f_9191_7ebb_d269, [0, 1, 1, 19, 148], [1, 6], 79),
        ("default", b"user:1000", 0x6ef8_9a56_bdbe_7dd7, [0, 1, 5, 5, 2727], [1, 11], 26),
        ("b2", b"my_key", 0x30af_947d_0530_afcd, [0, 2, 2, 90, 1318], [0, 7], 12),
        ("default", &bytes, 0x3182_0233_fe64_1cc8, [0, 0, 5, 44, 706], [0, 9], 92),
        ("default", &long, 0x7edd_0ee2_bda7_4b72, [0, 0, 12, 49, 3014], [0, 0], 67),
    ];
    for (bucket, key, hash, slots, core_hashes, second) in rows {
        assert_eq!(key_hash(bucket.as_bytes(), key), hash);
        for (count, expected) in [1, 3, 16, 100, 4096].into_iter().zip(slots) {
            assert_eq!(slot(hash, &vec![WEIGHT_FULL; count]), Some(expected), "{bucket} of {count}");
        }
        for (count, expected) in [4, 16].into_iter().zip(core_hashes) {
            assert_eq!(jump(mix64(hash ^ CORE), count), expected, "{bucket}: core hash of {count}");
        }
        let mut weights = vec![WEIGHT_FULL; 100];
        weights[slots[3]] = 0;
        assert_eq!(slot(hash, &weights), Some(second), "{bucket}: first slot dead");
    }
}

/// One hash for node and core would leave most cores of every node idle: jump's path for few buckets is a prefix of
/// its path for many.
#[test]
fn every_core_of_every_node_has_its_share_of_a_million_keys() {
    const CORES: usize = 8;
    const KEYS: u64 = 1_000_000;
    for nodes in [1, CORES / 2, CORES, CORES + 1] {
        let weights = vec![WEIGHT_FULL; nodes];
        let mut loads = vec![[0_u32; CORES]; nodes];
        for key in 0..KEYS {
            let hash = key_hash(b"default", &key.to_le_bytes());
            loads[slot(hash, &weights).unwrap()][core(hash, CORES)] += 1;
        }
        for (node, cores) in loads.iter().enumerate() {
            let mean = f64::from(cores.iter().sum::<u32>()) / CORES as f64;
            let busiest = f64::from(*cores.iter().max().unwrap());
            assert!(busiest <= 1.1 * mean, "node {node} of {nodes}: busiest core {busiest}, mean {mean}: {cores:?}");
        }
    }
}

#[test]
fn cores_own_contiguous_runs_of_virtual_shards_that_differ_by_at_most_one() {
    for cores in [1, 2, 3, 7, 64, 256] {
        let mut runs = vec![0; cores];
        let mut last = 0;
        for key in 0..200_000_u64 {
            let hash = mix64(key);
            assert_eq!(core(hash, cores), virtual_shard(hash) as usize * cores / VIRTUAL_SHARDS as usize);
        }
        for shard in 0..VIRTUAL_SHARDS as usize {
            let owner = shard * cores / VIRTUAL_SHARDS as usize;
            assert!(owner == last || owner == last + 1);
            last = owner;
            runs[owner] += 1;
        }
        assert!(runs.iter().max().unwrap() - runs.iter().min().unwrap() <= 1);
    }
}

#[test]
fn a_key_moves_only_off_the_slot_that_died_or_onto_the_one_that_returned() {
    const SLOTS: usize = 50;
    let keys: Vec<u64> = (0..4_000).map(mix64).collect();
    let mut weights = vec![WEIGHT_FULL; SLOTS];
    let mut before: Vec<_> = keys.iter().map(|&key| slot(key, &weights).unwrap()).collect();
    let mut moved = 0;
    for event in 0..300_u64 {
        let changed = (mix64(event) % SLOTS as u64) as usize;
        weights[changed] = WEIGHT_FULL - weights[changed];
        let Some(_) = weights.iter().find(|&&weight| weight > 0) else { continue };
        for (key, owner) in keys.iter().zip(&mut before) {
            let now = slot(*key, &weights).unwrap();
            if now != *owner {
                let (left, entered) = (*owner == changed, now == changed);
                assert!(if weights[changed] == 0 { left } else { entered }, "{owner} to {now} when {changed} changed");
                moved += 1;
            }
            *owner = now;
        }
    }
    assert!(moved > 10_000, "the test moved only {moved} keys");
}

#[test]
fn a_weight_is_the_share_of_keys_that_a_slot_gets() {
    let mut weights = vec![WEIGHT_FULL; 10];
    let load = |weights: &[u64]| (0..100_000).filter(|&key| slot(mix64(key), weights) == Some(3)).count() as f64;
    let full = load(&weights);
    for percent in [0_u64, 10, 50] {
        weights[3] = WEIGHT_FULL * percent / 100;
        let share = load(&weights) / full;
        assert!((share - percent as f64 / 100.0).abs() < 0.08, "{percent} % got {share} of a full share");
    }
    assert_eq!(slot(1, &[0, 0]), None);
    assert_eq!(slot(1, &[]), None);
}
