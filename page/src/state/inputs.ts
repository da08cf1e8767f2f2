import { effect, signal } from '@preact/signals'
import { get, set } from 'idb-keyval'
import { t } from '../i18n'
import { server } from './server'
import { change } from './draft'
import { confirmed } from './ui'

/** The pictures of the draft: where it starts, what of it is drawn anew, what it follows. Kept on this device. */

export interface Input {
  blob: Blob
  url: string
  width: number
  height: number
}

export interface Control {
  net: string
  hint: string
  scale: string
  picture: Input
  /** When it steers, and how, where a recipe says so: start, stop, guess. */
  more?: Record<string, unknown>
}

export const image = signal<Input | null>(null)
export const mask = signal<Input | null>(null)
export const controls = signal<readonly Control[]>([])

/** A picture out of a file. Raises an Error with a sentence for anything else; makes smaller what the server doesn't take, after asking. */
export async function inputOf(blob: Blob): Promise<Input> {
  if (!/^image\/(png|jpeg|webp)$/.test(blob.type)) throw new Error(t('notAPicture'))
  let bitmap: ImageBitmap
  try {
    bitmap = await createImageBitmap(blob)
  } catch {
    throw new Error(t('notAPicture'))
  }
  const most = server.value?.limits.pixels ?? 16e6
  const scale = Math.min(1, Math.sqrt(most / (bitmap.width * bitmap.height)))
  const width = Math.floor(bitmap.width * scale)
  const height = Math.floor(bitmap.height * scale)
  const heavy = blob.size > (server.value?.limits.body ?? Infinity)
  if (scale < 1 || heavy) {
    const size = { width: bitmap.width, height: bitmap.height, megabytes: Math.ceil(blob.size / 1e6), w: width, h: height }
    if (!(await confirmed(t('tooLarge', size), t('makeSmaller')))) {
      bitmap.close()
      throw new Error(t('leftOut'))
    }
    const canvas = document.createElement('canvas')
    canvas.width = width
    canvas.height = height
    canvas.getContext('2d')!.drawImage(bitmap, 0, 0, width, height)
    blob = await new Promise<Blob>((done) => canvas.toBlob((made) => done(made!), heavy ? 'image/jpeg' : 'image/png', 0.93))
  }
  bitmap.close()
  return { blob, url: URL.createObjectURL(blob), width, height }
}

function release(old: Input | null): void {
  if (old) URL.revokeObjectURL(old.url)
}

export function setImage(next: Input | null): void {
  if (image.value && mask.value && (next?.width !== image.value.width || next.height !== image.value.height)) setMask(null)
  release(image.value)
  image.value = next
  if (next) change({ hires: false })
}

export function setMask(next: Input | null): void {
  release(mask.value)
  mask.value = next
}

export function setControl(at: number, values: Partial<Control> | null): void {
  const old = controls.value[at]
  if (values === null && old) release(old.picture)
  controls.value =
    values === null ? controls.value.filter((_, i) => i !== at) : controls.value.map((one, i) => (i === at ? { ...one, ...values } : one))
}

interface Kept {
  image?: Blob | null
  mask?: Blob | null
  controls?: (Omit<Control, 'picture'> & { blob: Blob })[]
}
const KEPT = 'darkroom.inputs'

/** What was here the last time, and from then on keep what changes. A browser that keeps nothing is no fault. */
export async function keepInputs(): Promise<void> {
  const kept = await get<Kept>(KEPT).catch(() => undefined)
  try {
    if (kept?.image && !image.value) {
      image.value = await inputOf(kept.image)
      if (kept.mask) mask.value = await inputOf(kept.mask)
    }
    if (kept?.controls && !controls.value.length) {
      controls.value = await Promise.all(kept.controls.map(async ({ blob, ...rest }) => ({ ...rest, picture: await inputOf(blob) })))
    }
  } catch {
    // A picture that can't be read any more is left out.
  }
  effect(() => {
    const now: Kept = {
      image: image.value?.blob ?? null,
      mask: mask.value?.blob ?? null,
      controls: controls.value.map(({ picture, ...rest }) => ({ ...rest, blob: picture.blob })),
    }
    set(KEPT, now).catch(() => undefined)
  })
}
