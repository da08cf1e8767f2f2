import { signal } from '@preact/signals'
import { inputAt, Problem } from '../api'
import { t } from '../i18n'
import { sha256 } from './sha256'

/** Pictures on their way to the server: each is sent once, under the hash of its bytes. */

/** Bytes of all that is being sent. */
export const uploading = signal<{ sent: number; all: number } | null>(null)

const hashes = new WeakMap<Blob, string>()
const flying = new Map<string, Promise<void>>()

/** What a picture that came from the server is called there: it needs not be sent again. */
export const remember = (blob: Blob, hash: string) => void hashes.set(blob, hash)

async function hashOf(blob: Blob): Promise<string> {
  const known = hashes.get(blob)
  if (known) return known
  const data = await blob.arrayBuffer()
  const hash = crypto.subtle
    ? [...new Uint8Array(await crypto.subtle.digest('SHA-256', data))].map((byte) => byte.toString(16).padStart(2, '0')).join('')
    : sha256(new Uint8Array(data))
  hashes.set(blob, hash)
  return hash
}

/** A picture's name in a job, once the server has it. Raises Problem. */
export async function sent(blob: Blob): Promise<string> {
  const hash = await hashOf(blob)
  const there = await fetch(inputAt(hash), { method: 'HEAD', credentials: 'same-origin' }).then(
    (answer) => answer.ok,
    () => {
      throw new Problem(0, t('lost'))
    },
  )
  if (!there) {
    if (!flying.has(hash)) flying.set(hash, put(hash, blob).finally(() => flying.delete(hash)))
    await flying.get(hash)
  }
  return `input:${hash}`
}

/** Send; XMLHttpRequest tells how far it is, which fetch doesn't. */
function put(hash: string, blob: Blob): Promise<void> {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest()
    let mine = 0
    const count = (bytes: number, all: number) => {
      const { sent: before, all: total } = uploading.value ?? { sent: 0, all: 0 }
      const next = { sent: before + bytes - mine, all: total + all }
      mine = bytes
      uploading.value = next.sent >= next.all && all < 0 ? null : next
    }
    count(0, blob.size)
    const end = (problem?: Problem) => {
      count(0, -blob.size)
      if (uploading.value && uploading.value.all <= 0) uploading.value = null
      problem ? fail(problem) : done()
    }
    request.open('PUT', inputAt(hash))
    request.upload.onprogress = (event) => count(Math.min(event.loaded, blob.size), 0)
    request.onerror = () => end(new Problem(0, t('lost')))
    request.onload = () => {
      if (request.status < 300) return end()
      let told: { detail?: string; field?: string } = {}
      try {
        told = JSON.parse(request.responseText)
      } catch {
        // A proxy's answer, not the server's.
      }
      end(new Problem(request.status, told.detail ?? `${request.status} ${request.statusText}`, told.field === 'sha256' ? null : (told.field ?? null)))
    }
    request.send(blob)
  })
}
