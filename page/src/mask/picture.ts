import { Mask } from './engine'

/** A picture's values as a mask's: the first channel at the picture's size. */
export async function valuesOf(blob: Blob, width: number, height: number): Promise<Uint8Array> {
  const bitmap = await createImageBitmap(blob)
  const canvas = document.createElement('canvas')
  canvas.width = width
  canvas.height = height
  const context = canvas.getContext('2d', { willReadFrequently: true })!
  context.imageSmoothingEnabled = false
  context.drawImage(bitmap, 0, 0, width, height)
  bitmap.close()
  const { data } = context.getImageData(0, 0, width, height)
  return Uint8Array.from({ length: width * height }, (_, i) => data[4 * i]!)
}

/** A mask as a PNG: white is drawn anew. */
export function pngOf(mask: Mask): Promise<Blob> {
  const canvas = document.createElement('canvas')
  canvas.width = mask.width
  canvas.height = mask.height
  canvas.getContext('2d')!.putImageData(new ImageData(mask.rgba(), mask.width, mask.height), 0, 0)
  return new Promise((done) => canvas.toBlob((blob) => done(blob!), 'image/png'))
}

/** A picture as a mask of another one's size. */
export async function sized(blob: Blob, width: number, height: number): Promise<Blob> {
  const mask = new Mask(width, height)
  mask.add({ kind: 'load', data: await valuesOf(blob, width, height) })
  return pngOf(mask)
}
