import { useSignal } from '@preact/signals'
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import { thumbOf, type Picture } from '../api'
import { t } from '../i18n'
import { loading, next, pictures, pinnedOnly, query, readOn, readOnce } from '../state/gallery'
import { ofPicture } from '../state/source'
import { openPicture } from '../state/ui'
import { Icon } from './icon'
import { offered } from './recipes'

const CELL = 150 // pixels that a cell has at least
const GAP = 6
const BEYOND = 600 // pixels above and below the window that are there already

/** All pictures; `most`: only the newest, without search. */
export function Gallery({ most }: { most?: number }) {
  const all = pictures.value
  if (most !== undefined) return <Grid shown={all.slice(0, most)} />
  return (
    <section class="gallery" aria-label={t('gallery')}>
      <div class="row end">
        <label class="grow">
          {t('search')}
          <input
            type="search"
            id="search"
            placeholder={t('searchHint')}
            value={query.value}
            onInput={(event) => (query.value = event.currentTarget.value)}
          />
        </label>
        <label class="check">
          <input type="checkbox" checked={pinnedOnly.value} onChange={(event) => (pinnedOnly.value = event.currentTarget.checked)} />
          {t('pinnedOnly')}
        </label>
      </div>
      {!all.length && readOnce.value && !loading.value ? (
        <p class="empty">{query.value || pinnedOnly.value ? t('nothingFound') : t('galleryEmpty')}</p>
      ) : null}
      <Grid shown={all} onEnd={() => void readOn()} />
      {next.value ? (
        <p>
          <button type="button" disabled={loading.value} onClick={() => void readOn()}>
            {t('loadMore')}
          </button>
        </p>
      ) : null}
    </section>
  )
}

/** Cells of one size, of which only those near the window are there: fifty thousand are as quick as fifty. */
function Grid({ shown, onEnd }: { shown: readonly Picture[]; onEnd?: () => void }) {
  const box = useRef<HTMLUListElement>(null)
  const place = useSignal({ width: 0, from: 0, to: 2000 })
  const measure = () => {
    const rect = box.current?.getBoundingClientRect()
    if (!rect) return
    const from = Math.max(0, -rect.top - BEYOND)
    const to = innerHeight - rect.top + BEYOND
    const old = place.value
    const step = CELL / 2 // by halves of cells, so that not every pixel of scrolling draws anew
    if (rect.width !== old.width || Math.abs(from - old.from) > step || Math.abs(to - old.to) > step) place.value = { width: rect.width, from, to }
  }
  useLayoutEffect(measure)
  useEffect(() => {
    const observer = new ResizeObserver(measure)
    observer.observe(box.current!)
    addEventListener('scroll', measure, { passive: true })
    return () => {
      observer.disconnect()
      removeEventListener('scroll', measure)
    }
  }, [])
  const { width, from, to } = place.value
  const columns = Math.max(2, Math.floor((width + GAP) / (CELL + GAP)))
  const cell = (width - GAP * (columns - 1)) / columns
  const rows = Math.ceil(shown.length / columns)
  const first = Math.max(0, Math.floor(from / (cell + GAP)))
  const last = Math.min(rows, Math.ceil(to / (cell + GAP)))
  useEffect(() => {
    if (width && last >= rows - 1) onEnd?.()
  }, [last, rows, width])
  return (
    <ul class="cells" ref={box} style={{ height: `${Math.max(0, rows * (cell + GAP) - GAP)}px` }}>
      {width
        ? shown.slice(first * columns, last * columns).map((picture, i) => {
            const at = first * columns + i
            const style = {
              width: `${cell}px`,
              height: `${cell}px`,
              transform: `translate(${(at % columns) * (cell + GAP)}px, ${Math.floor(at / columns) * (cell + GAP)}px)`,
            }
            return <Cell key={picture.id} picture={picture} style={style} at={at} of={shown.length} columns={columns} />
          })
        : null}
    </ul>
  )
}

function Cell(props: { picture: Picture; style: Record<string, string>; at: number; of: number; columns: number }) {
  const { picture, style, at, of, columns } = props
  const prompt = picture.prompt || t('noPrompt')
  const go = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key]
    if (by === undefined) return
    const target = event.currentTarget as HTMLElement
    const other = target.closest('ul')?.querySelector<HTMLElement>(`[data-at="${at + by}"]`)
    if (!other) return
    event.preventDefault()
    other.focus()
    other.scrollIntoView({ block: 'nearest' })
  }
  return (
    <li style={style} aria-setsize={of} aria-posinset={at + 1}>
      <button type="button" data-at={at} aria-label={t('open', { prompt })} title={prompt} onClick={() => openPicture(picture.id)} onKeyDown={go}>
        {picture.gone ? <span class="gone">{prompt}</span> : <img src={thumbOf(picture.id)} alt={prompt} loading="lazy" decoding="async" />}
        {picture.pinned ? <span class="pinned" aria-hidden="true" /> : null}
      </button>
      <button
        type="button"
        class="offer"
        aria-label={`${t('info')}: ${prompt}`}
        title={t('info')}
        onClick={() => (offered.value = { title: prompt, load: () => ofPicture(picture.id) })}
      >
        <Icon name="more" />
      </button>
    </li>
  )
}
