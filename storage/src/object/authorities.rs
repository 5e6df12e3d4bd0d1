//! Whose certificates an `https` endpoint is believed by, where a setting names them.
//!
//! ```text
//!   AWS_CA_BUNDLE=file.pem ── read ──▶ certificates ──▶ instead of Mozilla's list, which is compiled in
//! ```
//! As in other S3 tools, a bundle replaces the list: who names an authority of their own trusts nobody else with their data.

use std::{fs, path::Path, sync::Arc};

use ureq::tls::{PemItem, RootCerts, parse_pem};

use crate::{Cause, Error, Operation};

/// The certificates in the PEM file at `path`. Blocks; for the start of a process.
///
/// # Errors
/// [`Cause::Misconfigured`]: it cannot be read, or there is none in it.
pub(super) fn read(path: &Path) -> Result<RootCerts, Error> {
    let refused = |why: String| {
        let text = format!("AWS_CA_BUNDLE={}: {why}", path.display());
        Operation::Get.failed(Cause::Misconfigured(Arc::from(text)))
    };
    let bytes = fs::read(path).map_err(|error| refused(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&bytes) {
        // Somebody may keep a key in the same file.
        if let PemItem::Certificate(certificate) = item.map_err(|error| refused(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(refused("there is no certificate in it; allowed is a file of certificates in PEM form".to_owned()));
    }
    Ok(certificates.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_cannot_be_read_or_holds_no_certificate_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        let refusal = || read(&path).unwrap_err().to_string();
        let start = format!("AWS_CA_BUNDLE={}: ", path.display());
        assert_eq!(refusal(), format!("{start}No such file or directory (os error 2)"));
        fs::write(&path, "nothing").unwrap();
        assert!(refusal().starts_with(&format!("{start}there is no certificate in it")), "{}", refusal());
        fs::write(&path, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        assert!(refusal().starts_with(&start), "{}", refusal());
    }
}
