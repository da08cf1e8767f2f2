import { fileOf, type PictureInfo } from '../api'
import { t } from '../i18n'
import { bare } from './png'
import { tell, tellProblem } from './ui'

/** Pictures out of the page: files and the clipboard, with their recipe or without. */

export async function fileBlob(id: string): Promise<Blob> {
  const answer = await fetch(fileOf(id))
  if (!answer.ok) throw new Error(t('gone'))
  return answer.blob()
}

export function save(blob: Blob, name: string): void {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 1000)
}

/** Save a picture's pixels alone. */
export async function saveBare(id: string): Promise<void> {
  try {
    const data = new Uint8Array(await (await fileBlob(id)).arrayBuffer())
    save(new Blob(bare(data), { type: 'image/png' }), `${id}.png`)
  } catch (error) {
    tellProblem(error)
  }
}

async function onClipboard(put: (clipboard: Clipboard) => Promise<void>): Promise<void> {
  try {
    if (!navigator.clipboard) throw new Error(t('noClipboard')) // not at http addresses other than this machine's
    await put(navigator.clipboard)
    tell(t('copied'))
  } catch (error) {
    tellProblem(error)
  }
}

/** Put a picture's recipe, as A1111's text, on the clipboard. */
export const copyRecipe = (info: PictureInfo) => onClipboard((clipboard) => clipboard.writeText(info.infotext))

/** Put a picture on the clipboard; browsers take its pixels alone. */
export function copyPicture(id: string): Promise<void> {
  return onClipboard(async (clipboard) => {
    const file = fileBlob(id) // given as a promise: after waiting, some browsers take the click for too long ago
    file.catch(() => undefined) // a clipboard that refuses at once doesn't look at it
    await clipboard.write([new ClipboardItem({ 'image/png': file })])
  })
}
