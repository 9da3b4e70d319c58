//! What a page says beyond its command's options.

use clap::Command;

/// A section of a page: terms with what they mean, then text.
pub struct Section {
    /// The heading, in capitals.
    pub title: &'static str,
    /// Terms and what they mean.
    pub terms: &'static [(&'static str, &'static str)],
    /// A paragraph; may be empty.
    pub text: &'static str,
}

/// The sections of a page, in order.
pub fn sections(page: &str) -> &'static [Section] {
    SECTIONS
        .iter()
        .find(|(name, _)| *name == page)
        .map_or(&[SHORT_STATUS], |(_, sections)| *sections)
}

/// The pages that the page of `command` names: of the command above it, those related, those below.
pub fn see_also(command: &Command) -> Vec<String> {
    let page = crate::page_name(command);
    let mut out: Vec<String> = match page.rsplit_once('-') {
        Some((above, _)) if page != "nydus-image" => vec![above.to_owned()],
        _ => Vec::new(),
    };
    let related = RELATED.iter().find(|(name, _)| *name == page);
    out.extend(
        related
            .into_iter()
            .flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned())),
    );
    let below = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    out.extend(below.map(|command| crate::page_name(command).to_owned()));
    out
}

const RELATED: &[(&str, &[&str])] = &[
    ("nydus-image", &["nydusify"]),
    (
        "nydus-image-create",
        &["nydus-image-merge", "nydus-image-check"],
    ),
    (
        "nydus-image-merge",
        &["nydus-image-create", "nydus-image-check"],
    ),
    (
        "nydus-image-check",
        &["nydus-image-inspect", "nydusify-check"],
    ),
    (
        "nydus-image-inspect",
        &["nydus-image-check", "nydus-image-stat"],
    ),
    ("nydus-image-optimize", &["nydusify-optimize"]),
    ("nydus-image-chunkdict-generate", &["nydus-image-create"]),
    ("nydusify", &["nydus-image"]),
    ("nydusify-convert", &["nydusify-check", "nydusify-mount"]),
    ("nydusify-check", &["nydusify-convert", "nydus-image-check"]),
    ("nydusify-mount", &["nydusify-umount", "nydusify-doctor"]),
    ("nydusify-umount", &["nydusify-mount"]),
    ("nydusify-doctor", &["nydusify-mount"]),
    ("nydusify-optimize", &["nydus-image-optimize"]),
];

const SECTIONS: &[(&str, &[Section])] = &[
    ("nydus-image", &[BUILDER_STATUS, BUILDER_FILES]),
    ("nydus-image-merge", &[MERGE_STATUS]),
    ("nydus-image-check", &[BUILDER_CHECK_STATUS]),
    (
        "nydusify",
        &[SHORT_STATUS, NYDUSIFY_ENVIRONMENT, NYDUSIFY_FILES],
    ),
    ("nydusify-check", &[NYDUSIFY_CHECK_STATUS]),
    ("nydusify-mount", &[MOUNT_STATUS]),
    ("nydusify-doctor", &[DOCTOR_STATUS]),
    ("nydusify-auth-check", &[AUTH_STATUS]),
];

const STOPPED: (&str, &str) = (
    "130, 143",
    "Stopped by SIGINT or SIGTERM; nothing half-written is left.",
);
const USAGE: (&str, &str) = (
    "2",
    "The command line is wrong, or asks for what is not supported yet.",
);
const FAILED: (&str, &str) = ("1", "It failed, for the reason on standard error.");

const SHORT_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[("0", "It is done."), FAILED, USAGE, STOPPED],
    text: "",
};

const BUILDER_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        ("0", "It is done."),
        FAILED,
        (
            "2",
            "The command line is wrong, or the layers to merge have inconsistent attributes.",
        ),
        STOPPED,
    ],
    text: "",
};

const MERGE_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        ("0", "It is done."),
        FAILED,
        (
            "2",
            "The layers differ in RAFS version, chunk size or owner flag (in v5 also in digester or compressor), or the \
             command line is wrong.",
        ),
        STOPPED,
    ],
    text: "",
};

const BUILDER_CHECK_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        ("0", "The bootstrap is valid."),
        (
            "1",
            "It is invalid or cannot be read, for the reason on standard error.",
        ),
        USAGE,
        STOPPED,
    ],
    text: "",
};

const BUILDER_FILES: Section = Section {
    title: "FILES",
    terms: &[
        (
            "a bootstrap",
            "The metadata of a layer or an image, RAFS v6 (which is EROFS) or v5.",
        ),
        (
            "a blob",
            "Chunks of files. A native blob ends with its chunk table, its bootstrap and a table of contents. Directories of \
             blobs name each by its SHA-256.",
        ),
    ],
    text: "Outputs are written under temporary names beside their own and renamed when they are complete. FIFOs are opened once \
           and read or written in order.",
};

const NYDUSIFY_CHECK_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        (
            "0",
            "The image is valid, and equal to its source if one is given.",
        ),
        (
            "1",
            "There are differences, the image is invalid, or the check failed.",
        ),
        USAGE,
        STOPPED,
    ],
    text: "",
};

const MOUNT_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        (
            "0",
            "With --detach: the mount is ready. Without: it has ended, by SIGINT, SIGTERM or an unmount.",
        ),
        FAILED,
        USAGE,
    ],
    text: "",
};

const DOCTOR_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        ("0", "At least one kind of mount works."),
        ("1", "None does."),
        USAGE,
    ],
    text: "",
};

const AUTH_STATUS: Section = Section {
    title: "EXIT STATUS",
    terms: &[
        ("0", "The repository may be read."),
        (
            "1",
            "It may not, for the registry's reason, or the registry cannot be reached.",
        ),
        USAGE,
    ],
    text: "",
};

const NYDUSIFY_ENVIRONMENT: Section = Section {
    title: "ENVIRONMENT",
    terms: &[
        (
            "DOCKER_CONFIG",
            "Directory of docker's config.json with credentials [default: ~/.docker].",
        ),
        (
            "HTTP_PROXY, HTTPS_PROXY, NO_PROXY",
            "Proxies for registries and buckets, and hosts to reach without one; those in lower case count first.",
        ),
        (
            "SSL_CERT_FILE, SSL_CERT_DIR",
            "Certificate authorities instead of the system's.",
        ),
        (
            "XDG_CACHE_HOME",
            "Where caches and the journal lie [default: ~/.cache].",
        ),
        (
            "TMPDIR",
            "Where a compressed archive is decompressed, to a file without a name [default: /tmp].",
        ),
    ],
    text: "Options name the variables that they take their default from. An empty variable is none.",
};

const NYDUSIFY_FILES: Section = Section {
    title: "FILES",
    terms: &[
        (
            "~/.docker/config.json",
            "Credentials and credential helpers.",
        ),
        (
            "~/.cache/nydusify/journal",
            "Which blob each converted layer became.",
        ),
        (
            "~/.cache/nydusify/mount",
            "Chunk caches of mounts, one directory per image.",
        ),
    ],
    text: "",
};
