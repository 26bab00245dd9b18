//! WebSocket frames as a client writes them, and worse.

/// A frame, masked as a client's must be.
pub fn frame(fin: bool, opcode: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = head(fin, opcode, data.len() as u64);
    frame.extend(data.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x88];

/// The head of a masked frame that announces `length` bytes.
pub fn head(fin: bool, opcode: u8, length: u64) -> Vec<u8> {
    let mut head = vec![u8::from(fin) << 7 | opcode];
    match length {
        0..=125 => head.push(0x80 | length as u8),
        126..=0xffff => {
            head.push(0x80 | 126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend_from_slice(&length.to_be_bytes());
        }
    }
    head.extend_from_slice(&MASK);
    head
}
