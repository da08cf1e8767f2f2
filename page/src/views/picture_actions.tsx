import { fileOf, type PictureInfo } from '../api'
import { t } from '../i18n'
import { again, enlarge, secondPass, startFrom } from '../state/actions'
import { copyPicture, copyRecipe, saveBare } from '../state/files'
import { pin, remove } from '../state/gallery'
import { ofPicture } from '../state/source'
import { masking } from './masking'
import { RecipeActions } from './recipes'

/** What can be done with a picture. */
export function Actions({ info }: { info: PictureInfo }) {
  return (
    <>
      <div class="row wrap">
        <RecipeActions offer={{ title: info.prompt || t('noPrompt'), load: () => ofPicture(info.id) }} />
        <button type="button" onClick={() => void again(info)}>
          {t('again')}
        </button>
      </div>
      {info.gone ? null : (
        <>
          <h2>{t('goOn')}</h2>
          <div class="row wrap">
            <button type="button" onClick={() => void startFrom(info)}>
              {t('asStart')}
            </button>
            <button type="button" onClick={() => void startFrom(info).then((there) => (masking.value = there))}>
              {t('asMask')}
            </button>
            <button type="button" title={t('enlargeHint')} onClick={() => void enlarge(info)}>
              {t('enlarge')}
            </button>
            <button type="button" title={t('secondPassHint')} onClick={() => void secondPass(info)}>
              {t('secondPass')}
            </button>
          </div>
        </>
      )}
      <h2>{t('thePicture')}</h2>
      <div class="row wrap">
        <button type="button" title="p" aria-pressed={info.pinned} onClick={() => void pin(info)}>
          {info.pinned ? t('unpin') : t('pin')}
        </button>
        {info.gone ? null : (
          <>
            <a class="button" href={`${fileOf(info.id)}?download=true`} download={`${info.id}.png`}>
              {t('download')}
            </a>
            <button type="button" onClick={() => void saveBare(info.id)}>
              {t('downloadBare')}
            </button>
            <button type="button" onClick={() => void copyPicture(info.id)}>
              {t('copyPicture')}
            </button>
          </>
        )}
        <button type="button" title="i" onClick={() => void copyRecipe(info)}>
          {t('copy')}
        </button>
        <button type="button" class="bad" title="Delete" onClick={() => void remove(info.id)}>
          {t('remove')}
        </button>
      </div>
    </>
  )
}
