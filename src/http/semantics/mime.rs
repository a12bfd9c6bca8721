//! Media types by the extension of a file name.

/// What is sent for a file of which nothing is known.
pub const DEFAULT: &str = "application/octet-stream";

/// Longest extension that is looked up in bytes; longer ones are unknown.
const EXTENSION_MAX: usize = 16;

/// The media type for a path or a file name, by what follows the last dot of its last segment,
/// ASCII case ignored. Text has `charset=utf-8`; XML and JSON say their encoding themselves.
pub fn from_path(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        // `.htaccess` is a hidden file without an extension.
        Some((stem, extension)) if !stem.is_empty() => from_extension(extension),
        _ => DEFAULT,
    }
}

/// The media type for an extension, without its dot.
pub fn from_extension(extension: &str) -> &'static str {
    let mut buffer = [0; EXTENSION_MAX];
    let Some(lower) = buffer.get_mut(..extension.len()) else {
        return DEFAULT;
    };
    lower.copy_from_slice(extension.as_bytes());
    lower.make_ascii_lowercase();
    let lower = &*lower;
    match TYPES.binary_search_by(|(known, _)| known.as_bytes().cmp(lower)) {
        Ok(index) => TYPES[index].1,
        Err(_) => rare(extension),
    }
}

/// Types that the web seldom sees. Source code of all kinds is shown as plain text, since browsers
/// would otherwise save it.
fn rare(extension: &str) -> &'static str {
    match mime_guess::from_ext(extension).first_raw() {
        Some(text) if text.starts_with("text/") => "text/plain; charset=utf-8",
        Some(other) => other,
        None => DEFAULT,
    }
}

/// Sorted by extension, for the search by halves.
#[rustfmt::skip]
const TYPES: &[(&str, &str)] = &[
    ("3gp", "video/3gpp"),
    ("7z", "application/x-7z-compressed"),
    ("aac", "audio/aac"),
    ("apk", "application/vnd.android.package-archive"),
    ("apng", "image/apng"),
    ("asc", "text/plain; charset=utf-8"),
    ("atom", "application/atom+xml"),
    ("avi", "video/x-msvideo"),
    ("avif", "image/avif"),
    ("bin", "application/octet-stream"),
    ("bmp", "image/bmp"),
    ("br", "application/octet-stream"),
    ("bz2", "application/x-bzip2"),
    ("cer", "application/pkix-cert"),
    ("cfg", "text/plain; charset=utf-8"),
    ("cjs", "text/javascript; charset=utf-8"),
    ("conf", "text/plain; charset=utf-8"),
    ("crt", "application/x-x509-ca-cert"),
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("cur", "image/x-icon"),
    ("deb", "application/vnd.debian.binary-package"),
    ("dmg", "application/octet-stream"),
    ("doc", "application/msword"),
    ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ("eot", "application/vnd.ms-fontobject"),
    ("epub", "application/epub+zip"),
    ("exe", "application/octet-stream"),
    ("flac", "audio/flac"),
    ("flv", "video/x-flv"),
    ("geojson", "application/geo+json"),
    ("gif", "image/gif"),
    ("glb", "model/gltf-binary"),
    ("gltf", "model/gltf+json"),
    ("gz", "application/gzip"),
    ("heic", "image/heic"),
    ("heif", "image/heif"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("ics", "text/calendar; charset=utf-8"),
    ("img", "application/octet-stream"),
    ("ini", "text/plain; charset=utf-8"),
    ("iso", "application/octet-stream"),
    ("jar", "application/java-archive"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("json5", "application/json5"),
    ("jsonld", "application/ld+json"),
    ("jxl", "image/jxl"),
    ("kml", "application/vnd.google-earth.kml+xml"),
    ("log", "text/plain; charset=utf-8"),
    ("lz4", "application/octet-stream"),
    ("m3u", "audio/x-mpegurl"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("m4v", "video/mp4"),
    ("map", "application/json"),
    ("markdown", "text/markdown; charset=utf-8"),
    ("md", "text/markdown; charset=utf-8"),
    ("mid", "audio/midi"),
    ("midi", "audio/midi"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mka", "audio/x-matroska"),
    ("mkv", "video/x-matroska"),
    ("mov", "video/quicktime"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("mpd", "application/dash+xml"),
    ("mpeg", "video/mpeg"),
    ("mpg", "video/mpeg"),
    ("msi", "application/octet-stream"),
    ("ndjson", "application/x-ndjson"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("ogv", "video/ogg"),
    ("opus", "audio/ogg"),
    ("otf", "font/otf"),
    ("pdf", "application/pdf"),
    ("pem", "application/x-pem-file"),
    ("png", "image/png"),
    ("ppt", "application/vnd.ms-powerpoint"),
    ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    ("ps", "application/postscript"),
    ("rar", "application/vnd.rar"),
    ("rpm", "application/x-rpm"),
    ("rss", "application/rss+xml"),
    ("rtf", "application/rtf"),
    ("sh", "text/plain; charset=utf-8"),
    ("shtml", "text/html; charset=utf-8"),
    ("sig", "application/pgp-signature"),
    ("sqlite", "application/vnd.sqlite3"),
    ("svg", "image/svg+xml"),
    ("svgz", "application/gzip"),
    ("swf", "application/x-shockwave-flash"),
    ("tar", "application/x-tar"),
    ("text", "text/plain; charset=utf-8"),
    ("tgz", "application/gzip"),
    ("tif", "image/tiff"),
    ("tiff", "image/tiff"),
    ("toml", "application/toml"),
    ("torrent", "application/x-bittorrent"),
    ("ts", "video/mp2t"),
    ("tsv", "text/tab-separated-values; charset=utf-8"),
    ("ttc", "font/collection"),
    ("ttf", "font/ttf"),
    ("txt", "text/plain; charset=utf-8"),
    ("vcf", "text/vcard; charset=utf-8"),
    ("vtt", "text/vtt; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("weba", "audio/webm"),
    ("webm", "video/webm"),
    ("webmanifest", "application/manifest+json"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xht", "application/xhtml+xml"),
    ("xhtml", "application/xhtml+xml"),
    ("xls", "application/vnd.ms-excel"),
    ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    ("xml", "application/xml"),
    ("xsd", "application/xml"),
    ("xsl", "application/xslt+xml"),
    ("xslt", "application/xslt+xml"),
    ("xz", "application/x-xz"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("zip", "application/zip"),
    ("zst", "application/zstd"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_in_lower_case() {
        assert!(TYPES.is_sorted_by(|(a, _), (b, _)| a < b));
        for (extension, media_type) in TYPES {
            assert!(extension.len() <= EXTENSION_MAX);
            assert_eq!(*extension, extension.to_ascii_lowercase());
            assert_eq!(from_extension(extension), *media_type);
            let text = media_type.starts_with("text/");
            assert_eq!(text, media_type.ends_with("; charset=utf-8"), "{extension}");
        }
    }

    #[test]
    fn a_path_has_the_type_of_its_last_extension() {
        for (path, expected) in [
            ("/index.html", "text/html; charset=utf-8"),
            ("/A/INDEX.HTML", "text/html; charset=utf-8"),
            ("app.min.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("style.css", "text/css; charset=utf-8"),
            ("data.json", "application/json"),
            ("site.webmanifest", "application/manifest+json"),
            ("logo.svg", "image/svg+xml"),
            ("feed.xml", "application/xml"),
            ("m.wasm", "application/wasm"),
            ("f.woff2", "font/woff2"),
            ("p.avif", "image/avif"),
            ("v.m3u8", "application/vnd.apple.mpegurl"),
            ("seg.ts", "video/mp2t"),
            ("x.tar.gz", "application/gzip"),
            ("main.c", "text/plain; charset=utf-8"),
            ("main.rs", "text/plain; charset=utf-8"),
            ("paper.odt", "application/vnd.oasis.opendocument.text"),
            ("LICENSE", DEFAULT),
            (".html", DEFAULT),
            ("/a.html/b", DEFAULT),
            ("a.", DEFAULT),
            ("a.an-extension-nobody-knows", DEFAULT),
            ("a.\u{e9}", DEFAULT),
            ("", DEFAULT),
        ] {
            assert_eq!(from_path(path), expected, "{path}");
        }
    }
}
