//! One linked Mach-O executable, as far as these tests look into it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use object::macho::{self, MachHeader64, Section64};
use object::read::macho::{MachHeader as _, MachOFile, Section as _, Segment as _};
use object::{Endianness, Object, ObjectSymbol, read::SymbolIndex};

/// What [`Image::open`] has read.
pub struct Image {
    /// `LC_BUILD_VERSION`: platform, and minimum system as (major, minor).
    pub platform: u32,
    pub minimum_system: (u32, u32),
    /// Symbols bound at load time, each with the library of its two-level name.
    pub imports: BTreeMap<String, String>,
    /// Symbols the executable defines, with their addresses.
    pub defined: BTreeMap<String, u64>,
    /// `__TEXT,__text`: its address and its instructions.
    text: (u64, Vec<u32>),
    /// Address of the stub through which an imported function is called.
    stubs: BTreeMap<String, u64>,
}

impl Image {
    pub fn open(path: &Path) -> Result<Image, String> {
        let data = std::fs::read(path).map_err(|error| error.to_string())?;
        read(&data).map_err(|error| error.to_string())
    }

    /// The names among `names` that are the hypervisor's.
    pub fn hypervisor_imports(&self) -> BTreeSet<&str> {
        self.imports.keys().map(String::as_str).filter(|name| name.starts_with("_hv_")).collect()
    }

    pub fn hypervisor_definitions(&self) -> BTreeSet<&str> {
        self.defined.keys().map(String::as_str).filter(|name| name.starts_with("_hv_")).collect()
    }

    /// Where `function` is entered from this executable: its definition, or the stub that jumps to the import.
    pub fn entry(&self, function: &str) -> Option<u64> {
        self.defined.get(function).or_else(|| self.stubs.get(function)).copied()
    }

    /// The `count` instructions from `address` on.
    pub fn instructions(&self, address: u64, count: usize) -> &[u32] {
        let (base, code) = (self.text.0, &self.text.1);
        let first = address.checked_sub(base).map_or(code.len(), |offset| offset as usize / 4).min(code.len());
        &code[first..code.len().min(first + count)]
    }

    /// The addresses of all `BL` and `B` to `target`.
    pub fn branches_to(&self, target: u64) -> Vec<u64> {
        let addresses = (self.text.0..).step_by(4);
        let sites = addresses.zip(&self.text.1);
        sites.filter(|&(at, &code)| branch_target(at, code) == Some(target)).map(|(at, _)| at).collect()
    }
}

/// Where `B` and `BL` (Arm ARM C6.2, imm26 in words) lead.
fn branch_target(at: u64, code: u32) -> Option<u64> {
    let words = ((code << 6) as i32 >> 6) as i64;
    (code & 0x7c00_0000 == 0x1400_0000).then(|| at.wrapping_add_signed(words * 4))
}

fn read(data: &[u8]) -> object::Result<Image> {
    let file = MachOFile::<MachHeader64<Endianness>>::parse(data)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut platform, mut version) = (0, 0);
    if let Some(build) = file.build_version()? {
        (platform, version) = (build.platform.get(file.endian()), build.minos.get(file.endian()));
    }
    let imports = file.imports()?.iter().map(|import| (text(import.name()), text(import.library()))).collect();
    let symbols = file.symbols().filter(|symbol| symbol.is_definition());
    let defined = symbols.filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address()))).collect();
    let mut image = Image {
        platform,
        minimum_system: (version >> 16, version >> 8 & 0xff),
        imports,
        defined,
        text: (0, Vec::new()),
        stubs: BTreeMap::new(),
    };
    read_code(&file, data, &mut image)?;
    Ok(image)
}

/// Reads `__text` and the table of stubs (`mach-o/loader.h`: `reserved1` is the first entry of a stub section in the table of
/// indirect symbols, `reserved2` the size of a stub).
fn read_code(file: &MachOFile<MachHeader64<Endianness>>, data: &[u8], image: &mut Image) -> object::Result<()> {
    let endian = file.endian();
    let mut indirect = Vec::new();
    let mut sections: Vec<&Section64<Endianness>> = Vec::new();
    let mut commands = file.macho_header().load_commands(endian, data, 0)?;
    while let Some(command) = commands.next()? {
        if let Some(table) = command.dysymtab()? {
            let (at, count) = (table.indirectsymoff.get(endian) as usize, table.nindirectsyms.get(endian) as usize);
            let bytes = data.get(at..at + 4 * count).unwrap_or_default();
            indirect = bytes.chunks_exact(4).map(word).collect();
        } else if let Some((segment, rest)) = command.segment_64()? {
            sections.extend(segment.sections(endian, rest)?);
        }
    }
    for section in sections {
        if section.sectname == *b"__text\0\0\0\0\0\0\0\0\0\0" {
            let code = section.data(endian, data).unwrap_or_default();
            image.text = (section.addr.get(endian), code.chunks_exact(4).map(word).collect());
        } else if section.flags.get(endian) & macho::SECTION_TYPE == macho::S_SYMBOL_STUBS {
            let (first, size) = (section.reserved1.get(endian) as usize, u64::from(section.reserved2.get(endian)));
            let count = (section.size.get(endian) / size.max(1)) as usize;
            for (at, &symbol) in indirect.iter().skip(first).take(count).enumerate() {
                let name = file.symbol_by_index(SymbolIndex(symbol as usize))?.name()?.to_owned();
                image.stubs.insert(name, section.addr.get(endian) + at as u64 * size);
            }
        }
    }
    Ok(())
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}
