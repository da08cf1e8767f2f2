import { effect, signal } from '@preact/signals'
import { api, type Picture } from '../api'
import { t } from '../i18n'
import { changed, onPicture } from './queue'
import { locked } from './server'
import { closePicture, opened, tell, tellProblem } from './ui'

/** The caller's pictures, newest first, a page after the other. */
export const pictures = signal<readonly Picture[]>([])
export const query = signal('')
export const pinnedOnly = signal(false)
export const next = signal<string | null>(null)
export const loading = signal(false)
export const readOnce = signal(false)
const PAGE = 60
const FURTHER = 200 // whoever scrolls wants more at once
let turn = 0

const wanted = (): Record<string, string> => ({
  limit: String(PAGE),
  ...(query.value.trim() ? { q: query.value.trim() } : {}),
  ...(pinnedOnly.value ? { pinned: 'true' } : {}),
})

/** The first page anew. Pictures that are shown already and still there stay below it. */
export async function refresh(afresh = false): Promise<void> {
  const mine = ++turn
  loading.value = true
  try {
    const page = await api.pictures(wanted())
    if (mine !== turn) return
    const old = afresh ? [] : pictures.value
    const last = page.images.at(-1)
    const overlap = last ? old.findIndex((one) => one.id === last.id) : -1
    pictures.value = overlap < 0 ? page.images : [...page.images, ...old.slice(overlap + 1)]
    if (overlap < 0) next.value = page.next
    readOnce.value = true
  } catch (error) {
    if (!locked.value) tellProblem(error)
  } finally {
    if (mine === turn) loading.value = false
  }
}

/** The next page below. */
export async function readOn(): Promise<void> {
  if (!next.value || loading.value) return
  const mine = turn
  loading.value = true
  try {
    const page = await api.pictures({ ...wanted(), limit: String(FURTHER), before: next.value })
    if (mine !== turn) return
    pictures.value = [...pictures.value, ...page.images]
    next.value = page.next
  } catch (error) {
    tellProblem(error)
  } finally {
    if (mine === turn) loading.value = false
  }
}

export async function pin(picture: Picture): Promise<void> {
  try {
    const changed = await api.change(picture.id, { pinned: !picture.pinned })
    pictures.value = pictures.value.map((one) => (one.id === changed.id ? changed : one))
  } catch (error) {
    tellProblem(error)
  }
}

/** Take a picture out, with half a minute to think again. */
export async function remove(id: string): Promise<void> {
  try {
    const { undo_seconds: seconds } = await api.remove(id)
    const at = pictures.value.findIndex((one) => one.id === id)
    const beside = pictures.value[at + 1] ?? pictures.value[at - 1]
    const job = pictures.value[at]?.job
    if (job) changed(job)
    pictures.value = pictures.value.filter((one) => one.id !== id)
    if (opened.value === id) {
      if (beside) opened.value = beside.id
      else closePicture()
    }
    tell(t('removed'), { seconds: seconds - 1, action: { label: t('undo'), run: () => void restore(id, at) } })
  } catch (error) {
    tellProblem(error)
  }
}

async function restore(id: string, at: number): Promise<void> {
  try {
    const back = await api.change(id, { deleted: false })
    changed(back.job)
    pictures.value = pictures.value.toSpliced(Math.max(at, 0), 0, back)
  } catch (error) {
    tellProblem(error)
  }
}

let timer = 0
let first = true
effect(() => {
  void query.value
  void pinnedOnly.value
  clearTimeout(timer)
  if (first) first = false
  else timer = setTimeout(() => void refresh(true), 200)
})
onPicture(() => void refresh())
