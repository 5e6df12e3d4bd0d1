//! What an entry is called below: the name of its object in S3, and of its file in a directory.
//!
//! ```text
//!   bucket default, key a/b c%.txt     plain  {prefix}default/a/b c%.txt        what S3's own tools would call it
//!   bucket default, key /a//..         plain  {prefix}default/%2Fa%2F%2F%2E%2E  what a store would bend is escaped
//!   over 1,024 bytes, or 255 in a row  plain  {prefix}default/{its head}%~{SHA-256 of the key in hex}
//!   bucket topic, key some_key         md5    {prefix}0d08/0d08c5418603c1ec5755b6f4754bf3d4
//!   bucket default, key a/b c          file   default/a%2Fb%20c                 longer ones in folders, each ending in ~
//! ```
//! `plain` and `file` give different keys different names (a collision of SHA-256 apart), and both can be read
//! backwards. `md5` does neither: it is for what exists already, and whose object it is stands in the object's metadata.

use std::fmt::Write as _;

use md5::{Digest as _, Md5};
use milena_proto::{key::KeyRef, limits};
use sha2::Sha256;

/// Longest name of an object in bytes, prefix and bucket included: S3's own.
pub const OBJECT_NAME_BYTES_MAX: usize = 1024;

/// Longest part of a name between two slashes. S3 has no such limit, but stores that keep objects as files do.
pub const SEGMENT_BYTES_MAX: usize = 255;

/// Longest prefix of all names in bytes, so that enough is left for any bucket and a hash.
pub const PREFIX_BYTES_MAX: usize = 512;

/// Longest name of one file or folder. File systems allow 255; the rest is for whoever copies them elsewhere.
const FILE_NAME_BYTES_MAX: usize = 200;

/// What stands between the head of a long name and the hash of its key; nowhere else, for a `%` before `~` is escaped.
pub(super) const HASH_MARK: &str = "%~";
const HASH_BYTES: usize = HASH_MARK.len() + 64;

const _: () = assert!(PREFIX_BYTES_MAX + limits::BUCKET_BYTES_MAX + 1 + HASH_BYTES <= OBJECT_NAME_BYTES_MAX);
const _: () = assert!(HASH_BYTES <= SEGMENT_BYTES_MAX && limits::BUCKET_BYTES_MAX <= SEGMENT_BYTES_MAX);

/// How objects in S3 are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KeyLayout {
    /// `{prefix}{bucket}/{key}`, escaped where S3 needs it.
    #[default]
    Plain,
    /// `{prefix}{4 hex}/{32 hex}` of MD5 over key, then bucket: for data that exists already in this layout.
    Md5,
}

impl KeyLayout {
    /// The name of the object under `key`: at most [`OBJECT_NAME_BYTES_MAX`] bytes. O(bytes of the key).
    ///
    /// # Panics
    /// When `prefix` is longer than [`PREFIX_BYTES_MAX`].
    #[must_use]
    pub fn object_name(self, prefix: &str, key: KeyRef<'_>) -> String {
        assert!(prefix.len() <= PREFIX_BYTES_MAX, "checked when the settings were read");
        match self {
            Self::Plain => plain_name(prefix, key),
            Self::Md5 => md5_name(prefix, key),
        }
    }
}

fn plain_name(prefix: &str, key: KeyRef<'_>) -> String {
    let mut name = format!("{prefix}{}/", key.bucket());
    push_escaped(key.name(), &mut name);
    if name.len() > OBJECT_NAME_BYTES_MAX || name.split('/').any(|segment| segment.len() > SEGMENT_BYTES_MAX) {
        name.truncate(head_bytes(&name));
        name.push_str(HASH_MARK);
        push_hex(&Sha256::digest(key.name()), &mut name);
    }
    name
}

/// How much of a name that is too long can stay before a hash, so that whole and last segment are within their limits.
fn head_bytes(name: &str) -> usize {
    const HEAD_BYTES_MAX: usize = OBJECT_NAME_BYTES_MAX - HASH_BYTES;
    let mut start = 0;
    for segment in name.split('/') {
        let end = start + segment.len();
        if segment.len() > SEGMENT_BYTES_MAX || end >= HEAD_BYTES_MAX {
            return name.floor_char_boundary(HEAD_BYTES_MAX.min(start + SEGMENT_BYTES_MAX - HASH_BYTES).min(end));
        }
        start = end + 1;
    }
    unreachable!("a name within the limits needs no hash")
}

fn md5_name(prefix: &str, key: KeyRef<'_>) -> String {
    let mut hash = Md5::new();
    hash.update(key.name());
    hash.update(key.bucket());
    let mut hex = String::with_capacity(32);
    push_hex(&hash.finalize(), &mut hex);
    format!("{prefix}{}/{hex}", &hex[..4])
}

/// Appends `name` as it is, but for what stores refuse or bend. These become `%XX`:
///
/// - bytes that are not UTF-8 (a name in S3 is UTF-8), and control characters (a listing in XML cannot hold them);
/// - a backslash, which SeaweedFS takes for a slash;
/// - segments `.` and `..`, which URLs resolve;
/// - a slash beside nothing or beside another slash: several stores merge them, or take the name for a folder;
/// - `%` where it would read as such an escape, or as [`HASH_MARK`].
fn push_escaped(name: &[u8], out: &mut String) {
    let segments: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    for (index, segment) in segments.iter().enumerate() {
        if index > 0 {
            let is_between = !segments[index - 1].is_empty() && !segment.is_empty();
            out.push_str(if is_between { "/" } else { "%2F" });
        }
        match *segment {
            b"." => out.push_str("%2E"),
            b".." => out.push_str("%2E%2E"),
            _ => push_segment(segment, out),
        }
    }
}

fn push_segment(segment: &[u8], out: &mut String) {
    for chunk in segment.utf8_chunks() {
        let valid = chunk.valid();
        for (index, letter) in valid.char_indices() {
            let rest = &valid.as_bytes()[index + 1..];
            match letter {
                '%' if reads_as_escape(rest) => out.push_str("%25"),
                '\0'..='\x1f' | '\x7f' | '\\' => push_byte(letter as u8, out),
                _ => out.push(letter),
            }
        }
        chunk.invalid().iter().for_each(|byte| push_byte(*byte, out));
    }
}

fn reads_as_escape(after_percent: &[u8]) -> bool {
    match after_percent {
        [b'~', ..] => true,
        [a, b, ..] => a.is_ascii_hexdigit() && b.is_ascii_hexdigit(),
        _ => false,
    }
}

fn push_byte(byte: u8, out: &mut String) {
    write!(out, "%{byte:02X}").expect("a string takes everything");
}

fn push_hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        write!(out, "{byte:02x}").expect("a string takes everything");
    }
}

/// The path of the file under `key`, relative to the store's directory: the bucket, folders for what is too long for one
/// name, then the file. Its names hold only `[A-Za-z0-9_.%-]`, none begins with a dot; folders alone end in `~`.
#[must_use]
pub fn file_path(key: KeyRef<'_>) -> String {
    let mut path = String::with_capacity(key.bucket().len() + 1 + key.name().len());
    path.push_str(key.bucket());
    path.push('/');
    let mut piece_bytes = 0;
    for byte in key.name() {
        if piece_bytes >= FILE_NAME_BYTES_MAX {
            path.push_str("~/");
            piece_bytes = 0;
        }
        let is_plain = match byte {
            b'.' => piece_bytes > 0,
            b'_' | b'-' => true,
            _ => byte.is_ascii_alphanumeric(),
        };
        let before = path.len();
        if is_plain {
            path.push(char::from(*byte));
        } else {
            push_byte(*byte, &mut path);
        }
        piece_bytes += path.len() - before;
    }
    path
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        hash::{BuildHasher as _, RandomState},
    };

    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    fn plain(name: &[u8]) -> String {
        KeyLayout::Plain.object_name("", KeyRef::parse(b"b", name).unwrap())
    }

    fn file(name: &[u8]) -> String {
        file_path(KeyRef::parse(b"b", name).unwrap())
    }

    /// Undoes the escapes, which is what makes the names injective.
    fn unescaped(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            let hex = after.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
            match (first, hex) {
                (b'%', Some(hex)) => {
                    bytes.push(u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap());
                    rest = &after[2..];
                }
                _ => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        bytes
    }

    #[test]
    fn the_md5_layout_is_the_one_of_the_data_that_exists() {
        let key = KeyRef::parse(b"topic", b"some_key").unwrap();
        assert_eq!(KeyLayout::Md5.object_name("", key), "0d08/0d08c5418603c1ec5755b6f4754bf3d4");
        assert_eq!(KeyLayout::Md5.object_name("old/", key), "old/0d08/0d08c5418603c1ec5755b6f4754bf3d4");
    }

    #[test]
    fn names_that_s3_takes_are_left_alone() {
        let names = ["greeting", "a/b c.txt", "100%", "50% off", "ä/漢字.jpg", "a+b&c=d?e#f", "...", "a/.hidden", "~x"];
        for name in names {
            assert_eq!(plain(name.as_bytes()), format!("b/{name}"));
        }
    }

    #[test]
    fn names_that_stores_bend_are_escaped() {
        let cases: [(&[u8], &str); 16] = [
            (b"a\\b", "b/a%5Cb"),
            (b"/", "b/%2F"),
            (b"/a", "b/%2Fa"),
            (b"a/", "b/a%2F"),
            (b"a//b", "b/a%2F%2Fb"),
            (b".", "b/%2E"),
            (b"..", "b/%2E%2E"),
            (b"../x", "b/%2E%2E/x"),
            (b"a/./b", "b/a/%2E/b"),
            (b"%2E", "b/%252E"),
            (b"%2f", "b/%252f"),
            (b"%~", "b/%25~"),
            (b"a\nb\0", "b/a%0Ab%00"),
            (b"\xff\xfe", "b/%FF%FE"),
            (b"%\xaa", "b/%%AA"),
            (b"%4\xaa", "b/%4%AA"),
        ];
        for (name, expected) in cases {
            assert_eq!(plain(name), expected, "{}", name.escape_ascii());
            assert_eq!(unescaped(&expected[2..]), name, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_name_too_long_for_s3_ends_in_the_hash_of_its_key() {
        assert_eq!(plain(&[b'x'; 255]), format!("b/{}", "x".repeat(255)));
        let one = plain(&[b'x'; 256]);
        assert!(one.starts_with(&format!("b/{}%~", "x".repeat(255 - 66))) && one.len() == 257, "{one}");
        assert_ne!(one, plain(&[b'x'; 257]));

        let four = ["x".repeat(200), "y".repeat(255), "z".repeat(255), "w".repeat(255)].join("/");
        assert_eq!(plain(four.as_bytes()), format!("b/{four}"));
        let five = format!("{four}/{}", "v".repeat(53));
        assert_eq!(plain(five.as_bytes()), format!("b/{five}"));
        let longer = plain(format!("{five}v").as_bytes());
        assert!(longer.starts_with(&format!("b/{}", &four[..900])) && longer.contains(HASH_MARK), "{longer}");
        // It is nobody else's name: a key that looks like it is escaped.
        assert_ne!(plain(&one.as_bytes()[2..]), one);
    }

    #[test]
    fn file_names_are_safe_and_files_never_meet_folders() {
        assert_eq!(file(b"greeting"), "b/greeting");
        assert_eq!(file(b"a/b c"), "b/a%2Fb%20c");
        assert_eq!(file(b".."), "b/%2E.");
        assert_eq!(file(b"v1.txt"), "b/v1.txt");
        assert_eq!(file(b"~"), "b/%7E");
        assert_eq!(file(&[b'x'; 200]), format!("b/{}", "x".repeat(200)));
        assert_eq!(file(&[b'x'; 201]), format!("b/{}~/x", "x".repeat(200)));
    }

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let odd = prop::collection::vec(
            prop::sample::select(vec![
                &b"/"[..],
                b".",
                b"..",
                b"%",
                b"~",
                b"2F",
                b"a",
                b"\xff",
                b"\0",
                b"\xc3\xa9",
                b" ",
            ]),
            1..12,
        )
        .prop_map(|parts| parts.concat());
        let long =
            (prop::sample::select(&b"a/.%\xff "[..]), 200_usize..=1024).prop_map(|(byte, count)| vec![byte; count]);
        let long_path = prop::collection::vec(150_usize..=255, 2..6)
            .prop_map(|lengths| lengths.into_iter().map(|n| vec![b'd'; n]).collect::<Vec<_>>().join(&b'/'))
            .prop_map(|mut name| {
                name.truncate(1024);
                name
            });
        prop_oneof![6 => odd, 2 => prop::collection::vec(any::<u8>(), 1..40), 1 => long, 1 => long_path]
    }

    /// A seed that is printed when a case fails, or the one in MILENA_SEED. proptest's own file of failed cases is for
    /// one machine only.
    fn cases() -> ProptestConfig {
        let seed = std::env::var("MILENA_SEED")
            .map_or_else(|_| RandomState::new().hash_one(0), |text| text.parse().expect("MILENA_SEED is a number"));
        println!("MILENA_SEED={seed}");
        ProptestConfig { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn different_keys_have_different_legal_names(all in prop::collection::vec(("[a-c]{1,2}", keys()), 2..20)) {
            let mut objects = HashMap::new();
            let mut files = HashMap::new();
            for (bucket, name) in &all {
                let key = KeyRef::parse(bucket.as_bytes(), name).unwrap();
                let object = KeyLayout::Plain.object_name("p/", key);
                prop_assert!(object.len() <= OBJECT_NAME_BYTES_MAX);
                prop_assert!(object.split('/').all(|segment| !matches!(segment, "" | "." | "..")), "{}", object);
                prop_assert!(object.split('/').all(|segment| segment.len() <= SEGMENT_BYTES_MAX), "{}", object);
                prop_assert!(!object.chars().any(|letter| letter.is_ascii_control()), "{object:?}");
                if !object.contains(HASH_MARK) {
                    prop_assert_eq!(unescaped(object.strip_prefix(&format!("p/{bucket}/")).unwrap()), name.clone());
                }
                prop_assert_eq!(*objects.entry(object).or_insert((bucket, name)), (bucket, name));

                let file = file_path(key);
                for piece in file.split('/') {
                    prop_assert!((1..=255).contains(&piece.len()) && !piece.starts_with('.'), "{file}");
                }
                let flat = file.strip_prefix(&format!("{bucket}/")).unwrap().replace("~/", "");
                prop_assert_eq!(unescaped(&flat), name.clone());
                prop_assert!(!file.ends_with('~'));
                files.insert(file, (bucket, name));
            }
            // No file is another one's folder.
            for file in files.keys() {
                let folder = format!("{file}/");
                prop_assert!(!files.keys().any(|other| other.starts_with(&folder)));
            }
        }
    }
}
