//! Paths from the root of an export.

/// The directory of a path and the last name in it; slashes at the end do not count. The root has no name, so there the
/// name is empty.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last.saturating_add(1));
    let path = path.get(..end).unwrap_or(path);
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (path.get(..slash).unwrap_or(&[]), path.get(slash.saturating_add(1)..).unwrap_or(&[])),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_path_is_a_directory_and_a_name() {
        let cases: &[(&str, &str, &str)] = &[
            ("a", "", "a"),
            ("/a", "", "a"),
            ("a/b", "a", "b"),
            ("/a//b///", "/a/", "b"),
            ("/", "", ""),
            ("", "", ""),
        ];
        for (path, directory, name) in cases {
            assert_eq!(split(path.as_bytes()), (directory.as_bytes(), name.as_bytes()), "{path}");
        }
    }
}
